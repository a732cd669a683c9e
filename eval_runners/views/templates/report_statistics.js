// Student's t with a whole number of degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4): two-sided p value.
function twoSided(t, freedom) {
  const angle = Math.atan(Math.abs(t) / Math.sqrt(freedom)), cos2 = Math.cos(angle) ** 2, odd = freedom % 2 === 1;
  let term = odd ? Math.cos(angle) : 1, sum = freedom === 1 ? 0 : term;
  for (let k = odd ? 3 : 2; k < freedom; k += 2) { term *= cos2 * (k - 1) / k; sum += term; }
  const inside = Math.sin(angle) * sum;
  return Math.max(0, 1 - (odd ? 2 / Math.PI * (angle + inside) : inside));
}

const LEVEL = 0.05, FEWEST_SEEDS = 3, SAME_L0 = 1.03, ROUNDING = 1e-8;
const quantiles = new Map();

// Half of the 95 % interval of a mean, in standard errors.
function quantile(freedom) {
  if (!quantiles.has(freedom)) {
    let low = 0, high = 20;
    for (let i = 0; i < 60; i++) { const middle = (low + high) / 2; twoSided(middle, freedom) > LEVEL ? low = middle : high = middle; }
    quantiles.set(freedom, high);
  }
  return quantiles.get(freedom);
}

function differencesBySeed(row, other, key) {
  const here = row.values[key]?.by, there = other.values[key]?.by, found = [];
  if (!here || !there) return found;
  row.seeds.forEach((seed, i) => {
    const j = other.seeds.indexOf(seed), a = here[i], b = j < 0 ? null : there[j];
    if (typeof a === "number" && typeof b === "number") found.push(a - b);
  });
  return found;
}

// Difference of two rows: paired over the seeds that both have, else of the means. p is null where there is no test.
function difference(row, other, key) {
  const own = differencesBySeed(row, other, key), n = own.length, plain = row.values[key].at - other.values[key].at;
  if (n < 2) return { mean: plain, half: null, p: null, n };
  const mean = own.reduce((a, b) => a + b, 0) / n;
  const error = Math.sqrt(own.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1) / n);
  const size = Math.max(Math.abs(row.values[key].at), Math.abs(other.values[key].at));
  if (n < FEWEST_SEEDS) return { mean, half: quantile(n - 1) * error, p: null, n };
  const p = Math.abs(mean) <= ROUNDING * size ? 1 : error > ROUNDING * size ? twoSided(mean / error, n - 1) : 2 ** (1 - n);
  return { mean, half: quantile(n - 1) * error, p, n };
}

// Which of several tests are significant after Holm's correction.
function holm(ps) {
  const order = ps.map((p, i) => [p, i]).filter(([p]) => p !== null).sort((a, b) => a[0] - b[0]), found = ps.map(() => false);
  for (const [done, [p, i]] of order.entries()) { if (p > LEVEL / (order.length - done)) break; found[i] = true; }
  return found;
}

// Pareto front over L0, as the leaderboard's: each row against the best at the same or a smaller L0.
function paretoFront(rows, column) {
  const sign = column.better === "lower" ? -1 : 1, at = r => sign * r.values[column.key].at, front = new Set();
  if (column.better === "neither" || rows.length < 2) return front;
  const done = [];
  let lowestOff = Infinity;
  for (const row of [...rows].sort((a, b) => at(b) - at(a))) {
    const most = SAME_L0 * row.l0, best = done.find(other => other.l0 <= most);
    done.push(row);
    let worse = false;
    if (best) { const d = difference(row, best, column.key); worse = d.p === null ? at(row) !== at(best) : d.p <= LEVEL; }
    if (lowestOff <= most || worse) lowestOff = Math.min(lowestOff, row.l0);
    else front.add(row);
  }
  return front;
}
