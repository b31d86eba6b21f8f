// Double backward: with v a cotangent of z̄, ⟨v, z̄⟩ = ⟨G, ṙ_N⟩ where ṙ is the tangent of the iteration along
// ż = v (and Ḋ for a cotangent of D̄). So it is the reverse pass over the iteration on dual numbers:
//
//   u̇_m = α̇_m + η(Dᵀṙ_m + Ḋᵀr_m);  α̇_{m+1} = σ'(u_m) u̇_m;  ṙ_{m+1} = ż − Dα̇_{m+1} − Ḋα_{m+1}
//
// and with h_m, the adjoint of ṙ_m, from the backward's recursion, r'_N = 0, for m = N−1 … 0:
//
//   α̇' −= Dᵀh_{m+1};  α' −= Dᵀr'_{m+1} + Ḋᵀh_{m+1}
//   u̇' = σ'(u) α̇';  u' = σ'(u) α' + σ''(u) u̇ α̇'   (the next α̇', α');  r'_m = ηDu' + ηḊu̇'
//   D̄ += η(u' r_mᵀ + u̇' ṙ_mᵀ) − α_{m+1} r'_{m+1}ᵀ − α̇_{m+1} h_{m+1}ᵀ
//
// The adjoints of z and ż are Σ r'_m and Σ h_m.
#include "istc_backward.cuh"

namespace fsad::cuda {

// An atom and its tangent: the maps D and Ḋ of one task. Without Ḋ, tangents.data is null.
template <class Real>
struct DualAtoms {
  PatchMap<const Real> values, tangents;

  __device__ __forceinline__ DualAtoms(const DoubleBackwardPass<Real>& pass, int64_t task)
      : values(task_map(pass.problem.atom_map, pass.problem.atom_map.data, task)), tangents(values) {
    const int64_t offset = task * values.task_size();
    tangents.data = pass.tangent_atoms ? pass.tangent_atoms + offset : nullptr;
  }

  // ⟨Ḋ, row⟩
  __device__ __forceinline__ Real tangent_dot(const Patch& atom, const Real* row) const {
    return tangents.data ? dot(tangents, atom, row) : Real(0);
  }
};

// One query's rows of r_m, ṙ_m, h_m and r'_m.
template <class Real>
struct DualRows {
  const DoubleBackwardPass<Real>& pass;
  int64_t row;

  __device__ __forceinline__ const Real* residual(int m) const { return pass.residual(m, row); }
  __device__ __forceinline__ const Real* tangent(int m) const { return pass.tangent(m, row); }
  __device__ __forceinline__ const Real* adjoint(int m) const { return pass.adjoint(m, row); }
  __device__ __forceinline__ const Real* second(int m) const { return pass.second(m, row); }
};

// The codes of one query and one atom, and their tangents. Lane m keeps what belongs to step m.
template <class Real>
struct DualCodes {
  Real code, tangent, slope, bend;  // α_{m+1}, α̇_{m+1}, σ'(u_m), σ''(u_m) u̇_m
};

template <class Real>
__device__ __forceinline__ DualCodes<Real> recode(const IstcProblem<Real>& p, Real step, int steps,
                                                  const DualAtoms<Real>& atoms, const Patch& atom,
                                                  const DualRows<Real>& rows) {
  DualCodes<Real> codes{0, 0, 0, 0};
  Real code = 0, tangent = 0;
  for (int m = 0; m < steps; ++m) {
    const Real product = dot(atoms.values, atom, rows.tangent(m)) + atoms.tangent_dot(atom, rows.residual(m));
    const Shrunk<Real> shrunk = shrink_step(p, m, code + step * dot(atoms.values, atom, rows.residual(m)));
    const Real u_tangent = tangent + step * product;
    code = shrunk.value;
    tangent = shrunk.first * u_tangent;
    if (lane_index() == m) codes = {code, tangent, shrunk.first, shrunk.second * u_tangent};
  }
  return codes;
}

// Calls visit(m, u'_m, u̇'_m) for m = N−1 … last.
template <class Real, class Visit>
__device__ __forceinline__ void reverse(const IstcProblem<Real>& p, int last, const DualAtoms<Real>& atoms,
                                        const Patch& atom, const DualCodes<Real>& codes,
                                        const DualRows<Real>& rows, Visit visit) {
  Real bar = 0, tangent_bar = 0;
  for (int m = p.iterations - 1; m >= last; --m) {
    tangent_bar -= dot(atoms.values, atom, rows.adjoint(m + 1));
    bar -= atoms.tangent_dot(atom, rows.adjoint(m + 1));
    if (m + 1 < p.iterations) bar -= dot(atoms.values, atom, rows.second(m + 1));
    const Real slope = from_lane(codes.slope, m);
    bar = slope * bar + from_lane(codes.bend, m) * tangent_bar;
    tangent_bar *= slope;
    visit(m, bar, tangent_bar);
  }
}

// ṙ_{m+1} from ṙ_0 … ṙ_m.
template <class Real>
__global__ void __launch_bounds__(kThreads) tangent_step(const DoubleBackwardPass<Real> pass, int m) {
  const IstcProblem<Real>& p = pass.problem;
  for_each_share<Real>(p.tasks * p.queries, p.width, [&](const Share& share) {
    const int64_t task = share.row / p.queries;
    const DualAtoms<Real> atoms(pass, task);
    const DualRows<Real> rows{pass, share.row};
    Sum<Real> sum(share);
    for_each_atom(p, task, [&](int64_t, const Patch& atom) {
      const DualCodes<Real> codes = recode(p, p.step[task], m + 1, atoms, atom, rows);
      sum.add_patch(from_lane(codes.tangent, m), atoms.values, atom);
      const Real code = from_lane(codes.code, m);
      if (atoms.tangents.data) sum.add_patch(code, atoms.tangents, atom);
    });
    const Real* start = rows.tangent(0);
    Real* target = pass.tangent(m + 1, share.row);
    sum.finish([&](int64_t column, Real value) { target[column] = start[column] - value; });
  });
}

// r'_m from r'_{m+1} … r'_{N−1}.
template <class Real>
__global__ void __launch_bounds__(kThreads) second_step(const DoubleBackwardPass<Real> pass, int m) {
  const IstcProblem<Real>& p = pass.problem;
  for_each_share<Real>(p.tasks * p.queries, p.width, [&](const Share& share) {
    const int64_t task = share.row / p.queries;
    const Real step = p.step[task];
    const DualAtoms<Real> atoms(pass, task);
    const DualRows<Real> rows{pass, share.row};
    Sum<Real> sum(share);
    for_each_atom(p, task, [&](int64_t, const Patch& atom) {
      const DualCodes<Real> codes = recode(p, step, p.iterations, atoms, atom, rows);
      Real bar = 0, tangent_bar = 0;
      reverse(p, m, atoms, atom, codes, rows, [&](int, Real value, Real tangent) {
        bar = value;
        tangent_bar = tangent;
      });
      sum.add_patch(step * bar, atoms.values, atom);
      if (atoms.tangents.data) sum.add_patch(step * tangent_bar, atoms.tangents, atom);
    });
    Real* target = pass.second(m, share.row);
    sum.finish([&](int64_t column, Real value) { target[column] = value; });
  });
}

// The rows of D̄.
template <class Real>
__global__ void __launch_bounds__(kThreads) second_atoms(const DoubleBackwardPass<Real> pass) {
  const IstcProblem<Real>& p = pass.problem;
  for_each_share<Real>(p.tasks * p.atoms, p.width, [&](const Share& share) {
    const int64_t task = share.row / p.atoms;
    const Real step = p.step[task];
    const DualAtoms<Real> atoms(pass, task);
    const Patch atom = atom_patch(p, task, share.row % p.atoms);
    Sum<Real> sum(share);
    for_each_query(p, task, [&](int64_t row) {
      const DualRows<Real> rows{pass, row};
      const DualCodes<Real> codes = recode(p, step, p.iterations, atoms, atom, rows);
      reverse(p, 0, atoms, atom, codes, rows, [&](int m, Real bar, Real tangent_bar) {
        sum.add_row(step * bar, rows.residual(m));
        sum.add_row(step * tangent_bar, rows.tangent(m));
        const Real code = from_lane(codes.code, m), tangent = from_lane(codes.tangent, m);
        if (m + 1 < p.iterations) sum.add_row(-code, rows.second(m + 1));
        sum.add_row(-tangent, rows.adjoint(m + 1));
      });
    });
    Real* target = pass.atom_rows + share.row * p.width;
    sum.finish([&](int64_t column, Real value) { target[column] = value; });
  });
}

// The adjoints of z = s·x and ż = s·ẋ + ṡ·x, to the gradients of patch x and scale s. One warp a query.
template <class Real>
__global__ void __launch_bounds__(kThreads) second_queries(const DoubleBackwardPass<Real> pass) {
  const IstcBackward<Real>& p = pass.problem;
  for_each_warp_item(p.tasks * p.queries, [&](int64_t row) {
    const PatchMap<const Real> map = task_map(p.query_map, p.query_map.data, row / p.queries);
    const Patch patch = locate(map, row % p.queries);
    Real* target = query_rows<Real>(pass) + row * p.width;
    Real product = 0;
    visit_patch(map, patch, [&](int offset, const Real* vector) {
      if (!vector) return;
      const Real* vector_tangent = pass.tangent_queries + (vector - p.query_map.data);
      for (int64_t c = lane_index(); c < map.channels; c += kLanes) {
        const int64_t column = offset * map.channels + c;
        Real sum = 0, tangent_sum = pass.adjoint(p.iterations, row)[column];
        for (int m = p.iterations - 1; m >= 0; --m) {
          sum += pass.second(m, row)[column];
          tangent_sum += pass.adjoint(m, row)[column];
        }
        product += sum * vector[c] + tangent_sum * vector_tangent[c];
        target[column] = sum * p.scale[row] + tangent_sum * pass.tangent_scale[row];
      }
    });
    product = warp_sum(product);
    if (lane_index() == 0) p.grad_scale[row] = product;
  });
}

template <class Real>
const char* run_double_backward(const DoubleBackwardPass<Real>& pass, Stream stream) {
  const IstcBackward<Real>& p = pass.problem;
  pack_rows<Real>({p.tasks, p.query_map, p.scale, nullptr, nullptr, pass.queries}, stream);
  PatchMap<const Real> tangent_map = p.query_map;
  tangent_map.data = pass.tangent_queries;
  pack_rows<Real>({p.tasks, tangent_map, p.scale, p.query_map.data, pass.tangent_scale, pass.tangents},
                  stream);
  compute_adjoints<Real>(pass, stream);
  for (int m = 0; m < p.iterations; ++m) {
    launch_shares<Real>(tangent_step<Real>, p.tasks * p.queries, p.width, stream, pass, m);
  }
  for (int m = p.iterations - 1; m >= 0; --m) {
    launch_shares<Real>(second_step<Real>, p.tasks * p.queries, p.width, stream, pass, m);
  }
  if (p.grad_atoms) {
    launch_shares<Real>(second_atoms<Real>, p.tasks * p.atoms, p.width, stream, pass);
  }
  launch(second_queries<Real>, warp_item_blocks(p.tasks * p.queries), 0, stream, pass);
  unpack_gradients<Real>(pass, stream);
  return launch_error();
}

template const char* run_double_backward(const DoubleBackwardPass<float>&, Stream);
template const char* run_double_backward(const DoubleBackwardPass<double>&, Stream);

}  // namespace fsad::cuda
