"""The words of docs/roofline.md."""

INTRO = """\
# A roofline of the CUDA kernels

**Everything on this page is predicted, nothing measured.** It is what `python docs/make_roofline.py` computes
from the tiles of csrc/cuda/tiling.h, of which it reads the numbers; a test holds the page to the script. It
serves to choose between ways to do the same, and to know which part of a GPU to relieve first. The bytes
were checked: on the interpreter of tests/ptx, counted global traffic of every kernel lay within 10 % of the
formula used here.

d is the width of rows, k the number of atoms, n that of queries, N that of steps; one task, SigShrink. A row
is one vector, which the kernels pad to a multiple of 32 bytes: 152 numbers of 16 bits to 160.

## The machines

Makers' figures, dense. In practice sustained rates are lower: the times below are lower bounds, and ratios
tell more than times. The rate from L2 and the {launch:.0f} µs from one kernel to the next are estimates.

{machines}

## What is counted

* **Tensor**: 16×8 blocks, of whole tiles, so with the padding of the last ones. A product of float32 numbers
  is three of TF32 numbers; in TF32, where torch allows it, one. Inner products of a tile take the padded d;
  sums whole chunks of 128 bytes. Time is that of the busiest multiprocessor: blocks come in whole numbers.
* **Integer, float32, issue**: instructions, counted on the source as compiled for sm_80. Splitting a float32
  into two TF32 numbers takes 2 integer instructions and 1 of float32; TF32 splits nothing, its rounding takes
  1 and 1; adding a block of partial products, 4 additions; SigShrink {shrink} with its derivatives, already
  without the five additions that its literal 0 and 1 save; addresses. "Issue" is the sum of all, one a clock
  and scheduler.
* **Special functions**: two an evaluation of SigShrink, an exponential and a reciprocal.
* **Shared memory**: fragments read by every warp, codes kept and read back, and copies on arrival. A warp
  multiplies 16 rows, so it reads the whole streamed tile for them.
* **L2**: owned tiles, once a block where they stay in shared memory, else once a streamed tile; streamed
  tiles, once for each product and sum and for each tile of the owning side; sums of every split; codes of a
  band.
* **DRAM**: each matrix once a kernel, and codes of a band, written and read. The workspace of a band, {codes}
  MiB, may also stay in L2: where that would change a decision, the page says so.

A kernel takes the largest of these, as if all parts worked at the same time, plus the time of a launch; and
another kernel adds up the splits. A pass adds a few kernels that pack and unpack rows, and that pad the
dictionaries where d is not a multiple of 32 bytes.

"""

CHOICE = """\
## Recompute or keep the codes?

Fused kernels recompute codes, N(N + 1)/2 + N products in the forward; banded ones keep them, 2N products, two
passes over the codes and two kernels a step and band. The largest N up to which fused is predicted to be at
most as slow as banded, in brackets up to which at most a quarter slower (0: not even one step; 12: the end of
the table). {agreement}

{crossings}

The present limit is N ≤ {fused_steps} (`kFusedSteps`), and {width4} columns of float32, {width2} of 16 bits.
Whatever the times: fused needs no workspace for codes. Its double backward keeps 2N tiles of codes in shared
memory, so it runs on {places}.

### All of them

Milliseconds, fused / banded, codes of a band in DRAM. {note}
"""

EAGER = """\
## Eager PyTorch

The plain form (fsad/reference.py) and its autograd, operator by operator, traced: arrays of k·n numbers read
and written, products, operators. Products run at the full rate of the machine at the same precision (float32
on the float32 pipe, no 3×TF32; on the H100 with instructions that reach what mma.sync does not), every other
array moves at full DRAM bandwidth, and every operator is one launch, with the CPU far enough ahead. A double
backward is counted without the backward before it, on either side. Where k·n numbers fit L2, eager is faster
than said.

{counts}

Milliseconds at N = 3: ours by the path that is chosen now / eager, and the ratio.

{times}

## Memory

MiB beside inputs and results, N = 3, float32 on an A100: ours by the path that is chosen now, history
included; eager, {arrays[0]} arrays of k·n numbers for a forward and backward, {arrays[1]} with the double
backward.

{memory}
"""
