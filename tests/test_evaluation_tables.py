"""Tables of an evaluation: means, spreads, gains and leads as by hand, published figures beside them."""

from __future__ import annotations

from itertools import product

import pytest
from evaluations import make_category, protocol

from fsad.errors import InputError
from fsad.evaluate import run_evaluation
from fsad.evaluation_plots import write_plots
from fsad.evaluation_tables import lead_table, table, write_tables
from fsad.metrics import confidence_interval


def test_published_figures_stand_beside_ours_of_the_same_data():
    def result(dataset, category):
        given = {"dataset": dataset, "category": category, "method": "fsad", "network": "net", "shots": 10}
        metrics = {"mIoU": 0.5, "frame AUC, normalised by video": 0.5}
        return {**given, "draw": 0, "metrics": metrics}

    paper = "| the paper's method, published | Wang et al., NeurIPS 2022, Table 1 |"
    text = table([result("mvtec", "cable"), result("mvtec", "zipper")], "mIoU", 10)
    assert f"{paper} 0.18 | 0.15 | 0.165 |" in text and "RegAD" not in text
    assert "| AE (MSE), published | Wang et al., NeurIPS 2022, Table 1 | 0.05 | 0.13 | 0.09 |" in text
    assert f"{paper} 0.18 | - | - |" in table([result("mvtec", "cable"), result("visa", "pcb1")], "mIoU", 10)
    assert "published" not in table([result("folders", "cable")], "mIoU", 10)
    scenes = [result("shanghaitech", "07"), result("shanghaitech", "08")]
    text = table(scenes, "frame AUC, normalised by video", 10)
    assert "| the paper's method, published | Wang et al., NeurIPS 2022, Table 2 | - | - | 0.8128 |" in text
    text = table([*scenes, result("avenue", "avenue")], "frame AUC, normalised by video", 10)
    titles = "| method | network | 07 | 08 | shanghaitech mean | avenue | mean | mean of sets |\n"
    assert text.startswith(titles) and "Table 2 | - | - | 0.8128 | 0.8446 | - | - |" in text


def test_the_same_name_in_two_sets(tmp_path):
    """btad and shanghaitech both have a category 01; of one set there is one of each name."""
    first, second = make_category(), make_category(1)
    for category, dataset in ((first, "btad"), (second, "shanghaitech")):
        category.name, category.dataset = "01", dataset
    out = tmp_path / "out"
    results = run_evaluation([first, second], protocol(methods=("ridge",), draws=1), out)
    write_plots([first, second], results, out)
    assert {path.name for path in (out / "plots").iterdir()} == {
        f"{dataset}-01-3{kind}.png" for dataset in ("btad", "shanghaitech") for kind in ("", "-maps")
    }
    lines = write_tables(results, out).splitlines()
    assert lines[2] == "| method | network | btad/01 | shanghaitech/01 | mean |"
    assert [len({row["scores"][0] for row in results}), len(results)] == [2, 2]
    second.dataset = "btad"
    with pytest.raises(InputError, match="several categories are named btad 01"):
        run_evaluation([first, second], protocol(), tmp_path)


def test_tables_show_mean_and_spread_over_draws():
    def result(category, draw, value):
        given = {"dataset": "folders", "category": category, "shots": 10}
        given |= {"method": "fsad", "network": "a/net.safetensors"}
        return {**given, "draw": draw, "metrics": {"image AUROC": value}}

    results = [result("bolt", 0, 0.8), result("bolt", 1, 0.9), result("nut", 0, 0.6), result("nut", 1, 0.7)]
    lines = table(results, "image AUROC", 10).splitlines()
    assert lines[0] == "| method | network | bolt | nut | mean |"
    assert lines[2] == "| fsad | a/net.safetensors | 0.850 ± 0.071 | 0.650 ± 0.071 | 0.750 ± 0.071 |"
    lines = table([*results, result("mono", 0, 0.3) | {"dataset": "elpv"}], "image AUROC", 10).splitlines()
    assert lines[0] == "| method | network | bolt | nut | folders mean | mono | mean | mean of sets |"
    means = "0.750 ± 0.071 | 0.300 | 0.683 ± 0.165 | 0.650 ± 0.212 |"
    assert lines[2].endswith(f"| 0.850 ± 0.071 | 0.650 ± 0.071 | {means}")
    other = result("bolt", 0, 0.5) | {"dataset": "mpdd"}
    assert "| folders/bolt | nut | folders mean | mpdd/bolt | mean | mean" in table(
        [*results, other], "image AUROC", 10
    )


def test_the_gain_on_further_networks_is_paired():
    def result(dataset, category, network, draw, value, method="fsad"):
        given = {"dataset": dataset, "category": category, "method": method, "network": network}
        return given | {"shots": 10, "draw": draw, "metrics": {"AP": value}}

    results = []
    for network, gain in (("untrained", 0.0), ("trained", 0.1)):
        for draw, luck in ((0, 0.0), (1, 0.2)):  # far larger than the gain, but shared
            bolt, nut = 0.3 + luck + gain, 0.4 + luck + 0.6 * gain
            results += [
                result("folders:a", "bolt", network, draw, bolt),
                result("folders:a", "nut", network, draw, nut),
            ]
            results += [result("elpv", "mono", network, draw, 0.5 + (2 + draw) * gain)]
            results += [result("elpv", "mono", network, draw, 0.1, "ridge")]
    *_, plain, gain = (line for line in table(results, "AP", 10).splitlines() if line.startswith("| fsad"))
    assert plain.startswith("| fsad | trained | 0.500 ± 0.141 | 0.560 ± 0.141 |")
    cells = ("+0.100 (+0.100 to +0.100)", "+0.060 (+0.060 to +0.060)", "+0.080 (+0.080 to +0.080)")
    last = "+0.250 (+0.200 to +0.300) | +0.137 (+0.120 to +0.153) | +0.165 (+0.140 to +0.190) |"
    assert gain == f"| fsad, gain | trained | {' | '.join(cells)} | {last}"


def test_the_lead_of_sets_counts_each_once():
    def result(method, dataset, category, draw, value):
        names = {"method": method, "category": category, "network": "a", "dataset": dataset}
        return names | {"draw": draw, "shots": 1, "metrics": {"AP": value}}

    leads = {("elpv", "mono"): 0.4, ("elpv", "poly"): 0.2, ("folders", "bolt"): -0.1}
    runs = list(product(leads.items(), (0, 1)))
    ours = [result("fsad", *names, draw, 0.5 + lead) for (names, lead), draw in runs]
    theirs = [result("ridge", *names, draw, 0.5) for (names, _), draw in runs]
    (line,) = lead_table(ours + theirs, "AP").splitlines()[2:]
    low, high = confidence_interval([0.3, -0.1] * 2)
    *_, lead, _, of_sets, interval = line.strip("| ").split(" | ")
    assert (lead, of_sets, interval) == ("+0.1667", "+0.1000", f"{low:+.4f} to {high:+.4f}")


def test_the_lead_is_of_the_same_categories_draws_and_shots():
    def result(method, category, draw, shots, value, network="a"):
        names = {"method": method, "category": category, "network": network, "dataset": "folders"}
        return names | {"draw": draw, "shots": shots, "metrics": {"AP": value}}

    runs = [(category, draw, shots) for category in ("bolt", "nut") for draw in (0, 1) for shots in (1, 5)]
    ours = [result("fsad", *run, 0.8 + 0.01 * sum(run[1:])) for run in runs]
    behind = {1: 0.3, 5: 0.1}  # by shots
    pairs = list(zip(runs, ours, strict=True))[:-2]  # the last category's last draw is missing
    theirs = [result("ridge", *run, own["metrics"]["AP"] - behind[run[2]]) for run, own in pairs]
    alone = [result("knn", "bolt", 0, 1, 0.9)]
    lines = lead_table(ours + theirs + alone, "AP").splitlines()
    assert lines[2:] == ["| ridge | a | +0.2000 | +0.2000 to +0.2000 |"]
    assert lead_table(ours + alone, "AP") == "" == lead_table(ours + theirs, "AUPRO")
    others = [r | {"method": "maml-ae", "network": "ae.safetensors"} for r in theirs]
    others += [result("ae-mse", category, 0, 0, 0.7, network="-") for category in ("bolt", "nut")]
    assert lead_table(ours + others, "AP").splitlines()[2:] == [
        "| maml-ae | ae.safetensors, fsad on a | +0.2000 | +0.2000 to +0.2000 |",
        "| ae-mse | -, fsad on a | +0.1350 | +0.1300 to +0.1400 |",  # 0.13 in draw 0, 0.14 in draw 1
    ]
