"""The penalties once more, in NumPy and float64, written from their formulas.

A reference takes a batch of points along the first axis and returns the penalty of each one. The axes of a matrix or of
a group are given here by hand, as they are counted from the front, and never by the options of the package.
"""

import itertools

import numpy as np


def of_weights(function):
    """The sum of a function of |weight| over the weights of each point."""

    def reference(points, **options):
        return np.sum(function(np.abs(points), **options).reshape(len(points), -1), axis=1)

    return reference


def elastic_net(size, l1=1.0, l2=1.0):
    return l1 * size + l2 * size**2


def is_not_zero(size):
    """Hardware may take a denormal number for 0."""
    return (size > 1e-37) * 1.0


def two_thirds(size):
    return np.cbrt(size) ** 2


def huber(size, delta=1.0):
    return np.where(size <= delta, size**2 / (2 * delta), size - delta / 2)


def mcp(size, lam=1.0, gamma=3.0):
    inner = np.minimum(size, gamma * lam)
    return lam * inner - inner**2 / (2 * gamma)


def scad(size, lam=1.0, a=3.7):
    inner = np.minimum(size, a * lam)
    parabola = (2 * a * lam * inner - inner**2 - lam**2) / (2 * (a - 1))
    return np.where(size <= lam, lam * size, np.where(size <= a * lam, parabola, lam**2 * (a + 1) / 2))


def log_sum(size, epsilon=1.0):
    return np.log1p(size / epsilon)


def anchor(points, target, fisher=1.0):
    squares = np.asarray(fisher, np.float64) * (points - np.asarray(target, np.float64)) ** 2
    return np.sum(squares.reshape(len(points), -1), axis=1) / 2


def weighted_l1(points, weights):
    sizes = np.asarray(weights, np.float64) * np.abs(points)
    return np.sum(sizes.reshape(len(points), -1), axis=1)


def largest(points):
    return np.max(np.abs(points).reshape(len(points), -1), axis=1, initial=0.0)


def total_variation(points, axis):
    """The axis is counted from the front of a point."""
    return np.sum(np.abs(np.diff(points, axis=axis + 1)).reshape(len(points), -1), axis=1)


def fused_lasso(points, axis, l1=1.0, tv=1.0):
    absolute = np.sum(np.abs(points).reshape(len(points), -1), axis=1)
    return l1 * absolute + tv * total_variation(points, axis)


def norms_of_groups(points, within):
    """The norms over the axes `within` of each point, as (points, groups)."""
    return np.sqrt(np.sum(points**2, axis=tuple(axis + 1 for axis in within))).reshape(len(points), -1)


def root_of_size(points, within, size_weighted):
    return np.sqrt(np.prod([points.shape[axis + 1] for axis in within])) if size_weighted else 1.0


def group_norms(points, within, size_weighted=False):
    return root_of_size(points, within, size_weighted) * np.sum(norms_of_groups(points, within), axis=1)


def group_mcp(points, within, size_weighted=False, lam=1.0, gamma=3.0):
    return np.sum(
        mcp(norms_of_groups(points, within), lam * root_of_size(points, within, size_weighted), gamma), axis=1
    )


def group_scad(points, within, size_weighted=False, lam=1.0, a=3.7):
    return np.sum(scad(norms_of_groups(points, within), lam * root_of_size(points, within, size_weighted), a), axis=1)


def hinged_norm(points, within, threshold=1.0):
    return np.sum(np.maximum(norms_of_groups(points, within) - threshold, 0) ** 2, axis=1)


def sparse_groups(points, within, l1=1.0, group=1.0, size_weighted=False):
    absolute = np.sum(np.abs(points).reshape(len(points), -1), axis=1)
    return l1 * absolute + group * group_norms(points, within, size_weighted)


def hoyer_square(points, within):
    """Hardware may take a denormal number for 0."""
    points = np.where(np.abs(points) > 1e-37, points, 0)
    axes = tuple(axis + 1 for axis in within)
    absolute, squares = np.sum(np.abs(points), axis=axes), np.sum(points**2, axis=axes)
    found = absolute**2 / np.where(squares > 0, squares, 1)
    return np.sum(found.reshape(len(points), -1), axis=1)


def matrices(points, rows, columns, batch=()):
    """The matrices of each point, as (points, matrices, rows, columns)."""
    moved = np.transpose(points, (0, *(axis + 1 for axis in (*batch, *rows, *columns))))
    sizes = [int(np.prod([points.shape[axis + 1] for axis in axes])) for axes in (batch, rows, columns)]
    return moved.reshape(len(points), *sizes)


def singular_values(points, rows, columns, batch=()):
    seen = matrices(points, rows, columns, batch)
    if 0 in seen.shape:
        return np.zeros((*seen.shape[:2], 1))
    return np.linalg.svd(seen, compute_uv=False)


def nuclear(points, rows, columns, batch=()):
    return np.sum(singular_values(points, rows, columns, batch), axis=(1, 2))


def spectral(points, rows, columns, batch=()):
    return np.sum(np.max(singular_values(points, rows, columns, batch), axis=2), axis=1)


def stable_rank(points, rows, columns, batch=()):
    squares = singular_values(points, rows, columns, batch) ** 2
    most = np.max(squares, axis=2)
    return np.sum(np.sum(squares, axis=2) / np.where(most > 0, most, 1), axis=1)


def unit_vectors(points, rows, columns, batch=(), mode="rows"):
    """Returns the compared vectors over max(norm, 1e-7), as (points, matrices, vectors, dimensions)."""
    seen = matrices(points, rows, columns, batch)
    seen = seen if mode == "rows" else np.swapaxes(seen, 2, 3)
    return seen / np.maximum(np.sqrt(np.sum(seen**2, axis=3, keepdims=True)), 1e-7)


def pairs(units, function):
    """The mean over pairs of a function of their cosines, pair by pair, added up over the matrices of each point."""
    n = units.shape[2]
    if n < 2:
        return np.zeros(len(units))
    found = [function(np.sum(units[:, :, i] * units[:, :, j], axis=2)) for i in range(n) for j in range(n) if i != j]
    return np.sum(sum(found), axis=1) / (n * (n - 1))


def cosines(points, rows, columns, batch=(), mode="rows"):
    return pairs(unit_vectors(points, rows, columns, batch, mode), np.abs)


def frame_potential(points, rows, columns, batch=(), mode="rows"):
    """The mean cos² less what the Welch bound says it must be."""
    units = unit_vectors(points, rows, columns, batch, mode)
    n, d = units.shape[2:]
    if n <= d:
        return pairs(units, np.square)
    if d == 0:
        return np.zeros(len(points))
    excess = np.swapaxes(units, 2, 3) @ units - n / d * np.eye(d)
    return np.sum(excess**2, axis=(1, 2, 3)) / (n * (n - 1))


def p_frame(points, rows, columns, batch=(), mode="rows", p=4):
    return pairs(unit_vectors(points, rows, columns, batch, mode), lambda cosine: np.abs(cosine) ** p)


def coherence(points, rows, columns, batch=(), mode="rows", sharpness=None):
    """The largest |cosine| of each matrix, or the logarithm of a sum of exponentials, pair by pair."""
    units = unit_vectors(points, rows, columns, batch, mode)
    n = units.shape[2]
    if n < 2 or 0 in units.shape[1:]:
        return np.zeros(len(units))
    found = np.array([np.abs(np.sum(units[:, :, i] * units[:, :, j], 2)) for i in range(n) for j in range(n) if i != j])
    if sharpness is None:
        return np.sum(np.max(found, axis=0), axis=1)
    return np.sum(np.log(np.sum(np.exp(sharpness * found), axis=0)) / sharpness, axis=1)


def off_diagonal(points, rows, columns, batch=(), mode="rows"):
    seen = matrices(points, rows, columns, batch)
    seen = seen if mode == "rows" else np.swapaxes(seen, 2, 3)
    n = seen.shape[2]
    found = [np.sum(seen[:, :, i] * seen[:, :, j], axis=2) ** 2 for i in range(n) for j in range(n) if i != j]
    return np.sum(sum(found), axis=1) if found else np.zeros(len(points))


def z_loss(points, rows, columns, batch=()):
    seen = matrices(points, rows, columns, batch)
    top = np.max(seen, axis=3, initial=-1e300)[..., None]
    if not points.size:
        return np.zeros(len(points))
    logs = np.log(np.sum(np.exp(seen - top), axis=3)) + top[..., 0]
    return np.sum(np.sum(logs**2, axis=2) / max(seen.shape[2], 1), axis=1)


def kl_sparsity(points, rows, columns, batch=(), rho=0.05, epsilon=0.01):
    """The divergence between two bounds, and its tangents beyond them."""
    if not points.size:
        return np.zeros(len(points))
    means = np.mean(matrices(points, rows, columns, batch), axis=2)
    lower, upper = epsilon * rho, 1 - epsilon * (1 - rho)

    def divergence(mean):
        return rho * np.log(rho / mean) + (1 - rho) * np.log((1 - rho) / (1 - mean))

    low = divergence(lower) + (lower - means) * (rho / lower - (1 - rho) / (1 - lower))
    high = divergence(upper) + (means - upper) * ((1 - rho) / (1 - upper) - rho / upper)
    middle = divergence(np.clip(means, lower, upper))
    values = np.where(means < lower, low, np.where(means > upper, high, middle))
    return np.sum(values, axis=(1, 2))


def covariances(points, rows, columns, batch, fewer):
    """The covariances of the features of each matrix, from differences of samples, over the samples less a number."""
    seen = matrices(points, rows, columns, batch)
    n = seen.shape[2]
    apart = [seen[:, :, k] - seen[:, :, m] for k in range(n) for m in range(k)]
    products = [difference[:, :, :, None] * difference[:, :, None, :] for difference in apart]
    total = sum(products) if products else np.zeros((*seen.shape[:2], seen.shape[3], seen.shape[3]))
    return total / max(n * max(n - fewer, 1), 1)


def decov(points, rows, columns, batch=(), fewer=0):
    found = covariances(points, rows, columns, batch, fewer)
    d = found.shape[-1]
    distinct = [found[:, :, i, j] ** 2 for i in range(d) for j in range(d) if i != j]
    return np.sum(sum(distinct), axis=1) / 2 if distinct else np.zeros(len(points))


def vicreg_covariance(points, rows, columns, batch=()):
    features = np.prod([points.shape[axis + 1] for axis in columns])
    return 2 * decov(points, rows, columns, batch, fewer=1) / max(features, 1)


def vicreg_variance(points, rows, columns, batch=(), gamma=1.0, epsilon=1e-4):
    if not points.size:
        return np.zeros(len(points))
    variances = np.diagonal(covariances(points, rows, columns, batch, 1), axis1=2, axis2=3)
    return np.sum(np.mean(np.maximum(gamma - np.sqrt(variances + epsilon), 0), axis=2), axis=1)


def gradient_of_vicreg_variance(x, rows, columns, batch=(), gamma=1.0, epsilon=1e-4):
    """−h/((N − 1)s) over the number of features where s < gamma, with the samples less their mean h."""
    order = (*batch, *rows, *columns)
    (seen,) = matrices(x[None], rows, columns, batch)
    n, d = seen.shape[1:]
    apart = [sum(seen[:, k] - seen[:, m] for m in range(n)) / n for k in range(n)]
    h = np.stack(apart, axis=1)
    deviation = np.sqrt(np.sum(h**2, axis=1, keepdims=True) / max(n - 1, 1) + epsilon)
    found = np.where(deviation < gamma, -h / (max(n - 1, 1) * deviation * d), 0)
    return found.reshape([x.shape[axis] for axis in order]).transpose(np.argsort(order))


def soft_orthogonal(points, rows, columns, batch=(), squared=True):
    """By the products of the smaller side."""
    seen = matrices(points, rows, columns, batch)
    seen = seen if seen.shape[2] >= seen.shape[3] else np.swapaxes(seen, 2, 3)
    apart = np.swapaxes(seen, 2, 3) @ seen - np.eye(seen.shape[3])
    squares = np.sum(apart**2, axis=(2, 3))
    return np.sum(squares if squared else np.sqrt(squares), axis=1)


def srip(points, rows, columns, batch=(), steps=None):
    """The largest |eigenvalue| of the products of the smaller side less the identity."""
    seen = matrices(points, rows, columns, batch)
    seen = seen if seen.shape[2] >= seen.shape[3] else np.swapaxes(seen, 2, 3)
    apart = np.swapaxes(seen, 2, 3) @ seen - np.eye(seen.shape[3])
    if not apart.size:
        return np.zeros(len(points))
    return np.sum(np.max(np.abs(np.linalg.eigvalsh(apart)), axis=2), axis=1)


def gradient_of_srip(x, rows, columns, batch=(), steps=None):
    """2σuvᵀ of the singular value whose square is farthest from 1, brought back to the order of the axes."""
    order = (*batch, *rows, *columns)
    (seen,) = matrices(x[None], rows, columns, batch)
    u, s, vt = np.linalg.svd(seen, full_matrices=False)
    apart = s**2 - 1
    far = np.where(apart[:, 0] + apart[:, -1] >= 0, 0, s.shape[1] - 1)
    found = np.stack([2 * np.sign(apart[i, j]) * s[i, j] * np.outer(u[i, :, j], vt[i, j]) for i, j in enumerate(far)])
    return found.reshape([x.shape[axis] for axis in order]).transpose(np.argsort(order))


def _shifted(points, inputs, outputs, batch, stride):
    """The kernels of each point as (points, kernels, space..., in, out), swapped where the columns are compared, and
    for each shift at which copies of the filters overlap the two parts that do."""
    space = tuple(axis for axis in range(points.ndim - 1) if axis not in (*batch, inputs, outputs))
    order = (0, *(axis + 1 for axis in (*batch, *space, inputs, outputs)))
    seen = np.transpose(points, order)
    count = int(np.prod([points.shape[axis + 1] for axis in batch]))
    seen = seen.reshape(len(points), count, *seen.shape[1 + len(batch) :])
    c, m = seen.shape[-2:]
    swapped = stride == 1 and m > c
    if swapped:
        seen, c, m = np.swapaxes(seen, -1, -2), m, c
    reach = [max(k - 1, 0) // stride for k in seen.shape[2:-2]]
    parts = []
    for shift in itertools.product(*(range(-r, r + 1) for r in reach)):
        one, other = [slice(None)] * 2, [slice(None)] * 2
        for steps, size in zip(shift, seen.shape[2:-2], strict=True):
            by = steps * stride
            one.append(slice(max(by, 0), size + min(by, 0)))
            other.append(slice(max(-by, 0), size + min(-by, 0)))
        parts.append((shift, tuple(one), tuple(other)))
    excess = max(0, m - c * int(np.prod(np.minimum(seen.shape[2:-2], stride))))
    return seen, order, swapped, parts, excess


def _filters(part):
    return part.reshape(*part.shape[:2], int(np.prod(part.shape[2:-1])), part.shape[-1])


def conv_orthogonal(points, inputs, outputs, batch=(), stride=1):
    """The products of all shifted copies of the filters of each kernel, shift by shift, beside the identity."""
    seen, _, _, parts, excess = _shifted(points, inputs, outputs, batch, stride)
    total = -float(seen.shape[1] * excess)
    for shift, one, other in parts:
        products = np.swapaxes(_filters(seen[one]), -1, -2) @ _filters(seen[other])
        total = total + np.sum((products - np.eye(seen.shape[-1]) * (not any(shift))) ** 2, axis=(1, 2, 3))
    return total + np.zeros(len(points))


def gradient_of_conv_orthogonal(x, inputs, outputs, batch=(), stride=1):
    seen, order, swapped, parts, _ = _shifted(x[None], inputs, outputs, batch, stride)
    found = np.zeros_like(seen)
    for shift, one, other in parts:
        a, b = _filters(seen[one]), _filters(seen[other])
        apart = np.swapaxes(a, -1, -2) @ b - np.eye(seen.shape[-1]) * (not any(shift))
        found[one] += (2 * b @ np.swapaxes(apart, -1, -2)).reshape(seen[one].shape)
        found[other] += (2 * a @ apart).reshape(seen[other].shape)
    found = np.swapaxes(found, -1, -2) if swapped else found
    return found.reshape([x[None].shape[axis] for axis in order]).transpose(np.argsort(order))[0]


def gradient_of_soft_orthogonal(x, rows, columns, batch=(), squared=True):
    """4X(XᵀX − I), or that over twice the norm, brought back to the order of the axes."""
    order = (*batch, *rows, *columns)
    (seen,) = matrices(x[None], rows, columns, batch)
    long = seen if seen.shape[1] >= seen.shape[2] else np.swapaxes(seen, 1, 2)
    apart = np.swapaxes(long, 1, 2) @ long - np.eye(long.shape[2])
    found = 4 * long @ apart
    if not squared:
        found = found / (2 * np.sqrt(np.sum(apart**2, axis=(1, 2), keepdims=True)))
    found = found if long is seen else np.swapaxes(found, 1, 2)
    return found.reshape([x.shape[axis] for axis in order]).transpose(np.argsort(order))


def finite_differences(function, x, step):
    """The gradient at `x` of a function of a batch of points. `step` is a number, or one for each entry of `x`."""
    x = np.asarray(x, np.float64)
    steps = np.broadcast_to(np.asarray(step, np.float64), x.shape)
    changes = np.zeros((x.size, *x.shape))
    for index, place in enumerate(np.ndindex(*x.shape)):
        changes[(index, *place)] = steps[place]
    ahead, behind = x + changes, x - changes
    spans = np.array([ahead[(i, *p)] - behind[(i, *p)] for i, p in enumerate(np.ndindex(*x.shape))])
    if not x.size:
        return np.zeros_like(x)
    return ((function(ahead) - function(behind)) / spans).reshape(x.shape)


# Sets, and ways into them that need not be the nearest. A batch of points lies along the first axis.


def _matrices_of(points, layout):
    view = layout.view
    batch, rows, columns = ([axis + 1 for axis in view[kind]] for kind in ("batch", "rows", "columns"))
    order = [0, *batch, *rows, *columns]
    moved = points.transpose(order)
    sizes = [int(np.prod([points.shape[axis] for axis in axes])) for axes in (batch, rows, columns)]
    return moved.reshape(len(points), *sizes), moved.shape, np.argsort(order)


def _norms_within(points, layout):
    return np.sqrt(np.sum(points**2, axis=tuple(axis + 1 for axis in layout.view["within"]), keepdims=True))


def _worst(distances):
    return np.max(np.abs(distances).reshape(len(distances), -1), axis=1, initial=0.0)


def into_box(lower=None, upper=np.inf):
    fixed = {} if lower is None else {"lower": lower, "upper": upper}

    def into(points, layout, **numbers):
        numbers = fixed | numbers
        return np.clip(points, numbers["lower"], numbers["upper"])

    return into


def outside_box(lower=None, upper=np.inf):
    into = into_box(lower, upper)
    return lambda points, layout, **numbers: _worst(points - into(points, layout, **numbers))


def into_norms(wanted, start=None):
    def into(points, layout, **numbers):
        points = np.where(_norms_within(points, layout) > 0, points, 1.0)  # any direction for groups of zeros
        norms = _norms_within(points, layout)
        target = (
            _norms_within(np.asarray(start(points.shape[1:]), np.float64)[None], layout)
            if start is not None
            else wanted(norms, **numbers)
        )
        return points * (target / norms)

    return into


def outside_norms(wanted, start=None):
    into = into_norms(wanted, start)

    def outside(points, layout, **numbers):
        return _worst(_norms_within(points, layout) - _norms_within(into(points, layout, **numbers), layout))

    return outside


def _axes_within(layout):
    return tuple(axis + 1 for axis in layout.view["within"])


def into_simplex(points, layout, radius):
    axes = _axes_within(layout)
    sizes = np.maximum(points, 0)
    empty = np.sum(sizes, axis=axes, keepdims=True) == 0
    sizes = np.where(empty, 1.0, sizes)
    return radius * sizes / np.sum(sizes, axis=axes, keepdims=True)


def outside_simplex(points, layout, radius):
    sums = np.sum(points, axis=_axes_within(layout), keepdims=True)
    return np.maximum(_worst(sums - radius), _worst(np.minimum(points, 0)))


def into_l1_ball(points, layout, radius):
    sums = np.sum(np.abs(points), axis=_axes_within(layout), keepdims=True)
    return points * np.minimum(1, radius / np.maximum(sums, 1e-300))


def outside_l1_ball(points, layout, radius):
    sums = np.sum(np.abs(points), axis=_axes_within(layout), keepdims=True)
    return _worst(np.maximum(sums - radius, 0))


def into_values(function):
    def into(points, layout, **numbers):
        seen, shape, back = _matrices_of(points, layout)
        u, s, vt = np.linalg.svd(seen, full_matrices=False)
        return (u * function(s, **numbers)[..., None, :] @ vt).reshape(shape).transpose(back)

    return into


def outside_values(function):
    def outside(points, layout, **numbers):
        s = np.linalg.svd(_matrices_of(points, layout)[0], compute_uv=False)
        return _worst(s - function(s, **numbers))

    return outside


def _rows_of_batch(points, layout):
    """Each array of a batch as a row, and its shape."""
    kept = 2 if "batch_axis" in layout.options else 1
    return points.reshape(*points.shape[:kept], -1)


def zeros_of_sparse(shape, layout, fraction):
    batch = shape[0] if "batch_axis" in layout.options else 1
    return batch * round(fraction * (np.prod(shape, dtype=int) // batch))


def into_sparse(points, layout, fraction):
    rows = _rows_of_batch(points, layout)
    order = np.argsort(np.argsort(np.abs(rows), axis=-1, kind="stable"), axis=-1)
    return np.where(order < round(fraction * rows.shape[-1]), 0, rows).reshape(points.shape)


def outside_sparse(points, layout, fraction):
    rows = _rows_of_batch(points, layout)
    missing = round(fraction * rows.shape[-1]) - np.sum(rows == 0, axis=-1)
    return _worst(np.maximum(missing, 0))


def _groups_of(points, layout):
    """The norms of the groups of each array of a batch, as rows."""
    norms = _norms_within(points, layout)
    return norms, tuple(axis + 1 for axis in layout.view["groups"])


def zeros_of_group_sparse(shape, layout, fraction):
    within = np.prod([shape[axis] for axis in layout.view["within"]], dtype=int)
    groups = np.prod([shape[axis] for axis in layout.view["groups"]], dtype=int)
    return round(fraction * groups) * within * (np.prod(shape, dtype=int) // within // groups)


def into_group_sparse(points, layout, fraction):
    norms, (axis,) = _groups_of(points, layout)
    order = np.argsort(np.argsort(norms, axis=axis, kind="stable"), axis=axis)
    return np.where(order < round(fraction * norms.shape[axis]), 0, points)


def outside_group_sparse(points, layout, fraction):
    norms, (axis,) = _groups_of(points, layout)
    return _worst(np.maximum(round(fraction * norms.shape[axis]) - np.sum(norms == 0, axis=axis), 0))


def _blocks_of(points, layout):
    axis = layout.view["axis"] + 1
    moved = np.moveaxis(points, axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, 4), moved.shape, axis


def into_blocks(points, layout):
    blocks, shape, axis = _blocks_of(points, layout)
    order = np.argsort(np.argsort(-np.abs(blocks), axis=-1, kind="stable"), axis=-1)
    return np.moveaxis(np.where(order < 2, blocks, 0).reshape(shape), -1, axis)


def outside_blocks(points, layout):
    blocks, _, _ = _blocks_of(points, layout)
    return _worst(np.maximum(np.sum(blocks != 0, axis=-1) - 2, 0))


def into_mask(start):
    return lambda points, layout: np.where(start(points.shape[1:]) != 0, points, 0)


def outside_mask(start):
    return lambda points, layout: _worst(np.where(start(points.shape[1:]) != 0, 0, points))
