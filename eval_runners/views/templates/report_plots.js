const TICKS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000];
const config = { displayModeBar: false, responsive: true };
const escaped = text => String(text).replace(/[&<>]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
const short = text => escaped(text.length > 34 ? `${text.slice(0, 18)}…${text.slice(-14)}` : text);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function styleOf(board, row) {
  const [light, dark, marker, ...lengths] = board.styles[row.architecture] || [css("--soft"), css("--soft"), "circle"];
  return [isDark() ? dark : light, marker, lengths.length ? lengths.map(n => `${n}px`).join(",") : "solid"];
}
const faded = (colour, alpha) => colour + Math.round(255 * alpha).toString(16).padStart(2, "0");

function layout(x, y, more = {}) {
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: more.automargin ?? true };
  return { margin: { l: 64, r: 14, t: 8, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--text"), size: 12 }, showlegend: false, hovermode: "closest", ...more, automargin: undefined,
    xaxis: { ...axis, title: { text: x }, ...more.xaxis }, yaxis: { ...axis, title: { text: y }, ...more.yaxis } };
}

// A figure with a caption, an empty plot and buttons that download what it shows.
function panel(figure, title, small = "", about = "") {
  let plot = figure.querySelector(".plot");
  if (!plot) {
    const caption = document.createElement("figcaption"), tools = document.createElement("div");
    plot = document.createElement("div");
    tools.className = "tools"; plot.className = "plot"; plot.setAttribute("role", "img");
    for (const [name, act] of [["CSV", () => save(`${fileName(plot)}.csv`, csvOf(plot.records))], ["SVG", () => picture(plot, "svg")], ["PNG", () => picture(plot, "png")]]) {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = name; button.onclick = act;
      tools.append(button);
    }
    figure.append(tools, caption, plot);
  }
  const caption = figure.querySelector("figcaption"), more = document.createElement("small");
  caption.textContent = title; more.textContent = small; caption.title = about;
  if (small) caption.append(more);
  figure.querySelectorAll(".tools button").forEach(b => b.setAttribute("aria-label", `${b.textContent} of ${title}`));
  plot.setAttribute("aria-label", [title, small].filter(Boolean).join(". ")); plot.title_of_file = title; plot.records = [];
  return plot;
}

const fileName = plot => plot.title_of_file.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "panel";

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" })); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function csvOf(records) {
  const heads = [...new Set(records.flatMap(Object.keys))], cell = v => v === null || v === undefined ? "" : /[",\n\r]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : String(v);
  return [heads, ...records.map(r => heads.map(h => r[h]))].map(line => line.map(cell).join(",")).join("\n") + "\n";
}

// Downloads are on white, in the colours of the light page, with a legend, whatever the page looks like.
function picture(plot, format) {
  const root = document.documentElement, { theme } = root.dataset, names = ["--text", "--soft", "--line"], here = names.map(css);
  const light = isDark() ? new Map(Object.values(boards[state.board].styles).map(([to, from]) => [from, to])) : new Map();
  root.dataset.theme = "light";
  names.forEach((name, i) => light.set(here[i], css(name)));
  if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
  const lit = value => JSON.parse(JSON.stringify(value).replace(/#[0-9a-f]{6}/g, colour => light.get(colour) ?? colour));
  const look = { ...lit(plot.layout), paper_bgcolor: "#fff", plot_bgcolor: "#fff", showlegend: plot.data.some(t => t.showlegend !== false && t.name), title: { text: escaped(plot.title_of_file), font: { size: 14 } }, margin: { ...plot.layout.margin, t: 40 } };
  return Plotly.downloadImage({ data: lit(plot.data), layout: look, config }, { format, width: 900, height: 480, scale: format === "png" ? 2 : 1, filename: fileName(plot) });
}

const places = value => Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 0.05 ? 3 : 5;
const number = value => value.toFixed(places(value));
function shown(v) {
  if (v === undefined || v.at === undefined) return "-";
  const least = places(v.at), own = v.half ? Math.min(Math.max(least, -Math.floor(Math.log10(v.half))), least + 2) : least;
  return v.at.toFixed(own) + (v.half === null ? "" : ` ± ${v.half.toFixed(own)}`);
}
function count(value) {
  return value === null || value === undefined ? "-" : value >= 1e9 ? `${+(value / 1e9).toPrecision(3)}G` : value >= 1e6 ? `${+(value / 1e6).toPrecision(3)}M` : value.toLocaleString("en");
}

function hover(row, value) {
  const lines = [`<b>${escaped(row.label)}</b>`, value && shown(value), row.l0 && `L0 ${row.l0.toFixed(1)}`, row.d_sae && `${row.d_sae} latents`,
    row.tokens && `${row.tokens.toLocaleString("en")} training tokens`, row.seeds.length && `seeds ${row.seeds.join(", ")}`,
    row.untrained.length && `untrained: ${escaped(row.untrained.join("; "))}`, row.source && escaped(row.source.split(": ")[0])];
  return lines.filter(Boolean).join("<br>");
}

const record = (row, more) => ({ SAE: row.label, L0: row.l0, latents: row.d_sae, tokens: row.tokens, seeds: row.seeds.join(" "), untrained: row.untrained.length ? "yes" : "", ...more });

// Limits that fit the trained SAEs: those of all rows where there are none, or where all are wanted.
function limits(rows, key) {
  const trained = rows.filter(r => !r.control), fitted = state.full || !trained.length ? rows : trained;
  const ends = fitted.flatMap(r => { const v = r.values[key]; return [v.at - (v.half || 0), v.at + (v.half || 0)]; });
  const low = Math.min(...ends), high = Math.max(...ends), rim = 0.07 * (high - low || Math.abs(high) || 1);
  return [low - rim, high + rim];
}

// rows of nearly one L0 must not be drawn far apart
function spread(rows) {
  const trained = rows.filter(r => !r.control), levels = (trained.length && !state.full ? trained : rows).map(r => r.l0);
  return [Math.log10(Math.min(...levels) / 1.25), Math.log10(Math.max(...levels) * 1.25)];
}

const FRONT = "Pareto front";
const lineOf = row => JSON.stringify([row.kind, row.d_sae, row.untrained.length ? "untrained" : row.tokens]);

// A metric over L0: one connected line for each recipe, width and number of training tokens. In the headline those of others
// stand in grey behind ours.
function drawOverL0(plot, board, column, rows, headline) {
  const key = column.key, found = rows.filter(r => r.values[key]?.at !== undefined), saes = found.filter(r => r.is_sae && r.l0);
  const fitted = limits(saes, key), inside = r => r.values[key].at >= fitted[0] && r.values[key].at <= fitted[1];
  const outside = saes.filter(r => !inside(r)), [low, high] = withRoom(fitted, outside, key);
  const lines = new Map(), traces = [];
  for (const r of [...saes].sort((a, b) => a.l0 - b.l0)) lines.set(lineOf(r), [...(lines.get(lineOf(r)) || []), r]);
  const front = headline ? headlineFront(board, column) : new Set();
  const narrow = mainSizes(board, column), named = new Set();
  const isBehind = r => headline && r.source && saes.some(other => !other.source && !other.untrained.length);
  for (const all of [...lines.values()].sort((a, b) => Boolean(isBehind(b[0])) - Boolean(isBehind(a[0])))) {
    const own = all.filter(inside), [ownColour, symbol, dash] = styleOf(board, all[0]), behind = isBehind(all[0]), colour = behind ? css("--soft") : ownColour, untrained = all[0].untrained.length > 0;
    if (!own.length) continue;
    const x = own.map(r => r.l0), y = own.map(r => r.values[key].at), half = own.map(r => r.values[key].half || 0);
    const side = !untrained && narrow && (all[0].d_sae !== narrow[0] || all[0].kind !== all[0].architecture);
    const banded = headline && !behind && own.length > 1 && half.some(h => h);
    if (banded) traces.push({ type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, fill: "toself", fillcolor: faded(colour, lines.size > 12 ? 0.1 : 0.16), line: { width: 0 },
      x: [...x, ...[...x].reverse()], y: [...y.map((v, i) => v + half[i]), ...y.map((v, i) => v - half[i]).reverse()] });
    traces.push({ type: "scatter", mode: own.length > 1 ? "lines+markers" : "markers", name: short(all[0].kind), showlegend: !named.has(all[0].kind), x, y,
      ...(!banded && !behind && half.some(h => h) ? { error_y: { type: "data", array: half, thickness: 1.2, width: 3, color: colour } } : {}),
      opacity: behind ? 0.55 : side ? 0.7 : 1, line: { color: colour, width: behind || side ? 1 : headline ? 2 : 1.5, dash },
      marker: { color: colour, symbol: symbol + (untrained ? "-open" : ""), size: behind ? 6 : symbol === "star" ? 11 : headline ? 9 : 8, line: { color: colour, width: untrained ? 1.5 : 0 } },
      text: own.map(r => hover(r, r.values[key])), hovertemplate: "%{text}<extra></extra>" });
    named.add(all[0].kind);
  }
  if (outside.length) traces.push(atTheEdge(board, outside, key, fitted, [low, high], spread(saes), plot.clientWidth));
  const ringed = saes.filter(r => front.has(r) && inside(r));
  if (ringed.length) traces.push({ type: "scatter", mode: "markers", name: FRONT, x: ringed.map(r => r.l0), y: ringed.map(r => r.values[key].at), hoverinfo: "skip",
    marker: { symbol: "circle-open", size: ringed.length > 6 ? 14 : 18, color: css("--text"), line: { width: 1.4 } } });
  const references = found.filter(r => !r.is_sae), small = { showarrow: false, xref: "paper", xanchor: "left", yanchor: "bottom", font: { size: 10, color: css("--soft") } };
  const shapes = references.filter(inside).map(r => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: r.values[key].at, y1: r.values[key].at, line: { dash: "dash", width: 1, color: css("--soft") } }));
  const annotations = references.filter(inside).map(r => ({ ...small, x: 0.01, y: r.values[key].at, text: short(r.label) }));
  const beyond = references.filter(r => !inside(r)).map(r => `${r.values[key].at > fitted[1] ? "↑" : "↓"} ${short(r.label)} ${number(r.values[key].at)}`);
  if (beyond.length) annotations.push({ ...small, x: 0, yref: "paper", y: 1, text: beyond.join("  ") });
  plot.records = found.map(r => record(r, { [key]: r.values[key].at, "half interval": r.values[key].half, ...(headline ? { front: front.has(r) ? "yes" : "" } : {}) }));
  const [from, to] = spread(saes), ticks = TICKS.filter(t => Math.log10(t) >= from && Math.log10(t) <= to);
  const xaxis = { type: "log", range: [from, to], ...(ticks.length > 1 ? { tickvals: ticks, ticktext: ticks.map(String) } : {}) };
  return Plotly.react(plot, traces, layout("L0: latents per token (log)", `${column.head} ${data.arrows[column.better]}`, { automargin: false, xaxis, yaxis: { range: [low, high] }, shapes, annotations, ...(beyond.length ? { margin: { l: 64, r: 14, t: 20, b: 44 } } : {}) }), config);
}

// Room at the edges for the arrows of the rows beyond them.
function withRoom([low, high], outside, key) {
  const most = side => Math.min(6, Math.max(0, ...outside.filter(side).map(r => outside.filter(o => side(o) && Math.abs(Math.log(o.l0 / r.l0)) < NEAR).length)));
  const room = 0.055 * (high - low), below = most(r => r.values[key].at < low), above = most(r => r.values[key].at > high);
  return [low - below * room, high + above * room];
}

const NEAR = 0.65;
// Controls beyond the axes: an arrow at the edge that points to where they are, with their value.
function atTheEdge(board, rows, key, fitted, [low, high], [from, to], width) {
  const taken = [], step = 0.045 * (high - low), places = [], down = r => r.values[key].at < fitted[0];
  const at = r => (Math.log10(r.l0) - from) / (to - from), isRight = r => at(r) > 0.6, label = r => ` ${width < 560 ? "" : `${short(r.architecture)} `}${number(r.values[key].at)} `;
  const long = r => (8 + 6 * label(r).length) / (width - 78), span = r => isRight(r) ? [at(r) - long(r), at(r) + 0.01] : [at(r) - 0.01, at(r) + long(r)];
  for (const r of rows) {
    const [start, end] = span(r), near = taken.filter(([other]) => down(other) === down(r) && span(other)[0] < end && start < span(other)[1]).map(([, line]) => line);
    const line = [0, 1, 2, 3, 4, 5, 6, 7].find(i => !near.includes(i)) ?? near.length % 8;
    taken.push([r, line]);
    places.push(down(r) ? low + (0.55 + line) * step : high - (0.55 + line) * step);
  }
  return { type: "scatter", mode: rows.length > 40 ? "markers" : "markers+text", name: "beyond the axis", showlegend: false, x: rows.map(r => r.l0), y: places, textposition: rows.map(r => `middle ${isRight(r) ? "left" : "right"}`), textfont: { size: 10, color: css("--soft") },
    text: rows.map(label), customdata: rows.map(r => hover(r, r.values[key])), hovertemplate: "%{customdata}<extra></extra>",
    marker: { size: 9, color: rows.map(r => styleOf(board, r)[0]), symbol: rows.map(r => down(r) ? "arrow-down" : "arrow-up") } };
}

// Differences to the baseline at matched L0, a column of dots for each metric: solid where they are told apart.
function drawAgainst(plot, board, comparison) {
  const { base, facets } = comparison, order = [...new Set(facets.flatMap(f => f.dots.map(d => d.row.kind)))], traces = [], axes = {}, gap = 0.05;
  const width = (1 - gap * (facets.length - 1)) / facets.length, line = css("--line"), soft = css("--soft");
  plot.style.height = `${Math.min(1400, Math.max(372, 60 + 17 * order.length))}px`;
  const annotations = [], shapes = [], position = new Map([...order].reverse().map((kind, i) => [kind, i]));
  facets.forEach((facet, f) => {
    const suffix = f ? f + 1 : "", domain = [f * (width + gap), f * (width + gap) + width];
    const trained = facet.dots.filter(d => !d.row.control), fitted = state.full || trained.length < 2 ? facet.dots : trained;
    const ends = [0, ...fitted.flatMap(d => [d.mean - (d.half || 0), d.mean + (d.half || 0)])], rim = 0.08 * (Math.max(...ends) - Math.min(...ends) || 1);
    const low = Math.min(...ends) - rim, high = Math.max(...ends) + rim;
    const inside = facet.dots.filter(d => d.mean >= low && d.mean <= high), looks = inside.map(d => styleOf(board, d.row));
    for (const d of facet.dots) plot.records.push(record(d.row, { metric: facet.column.key, baseline: base.label, difference: d.mean, "half interval": d.half, p: d.p, "told apart": d.apart ? "yes" : "no" }));
    for (const d of facet.dots.filter(d => !inside.includes(d))) annotations.push({ xref: `x${suffix}`, x: d.mean < low ? low : high, y: position.get(d.row.kind), text: d.mean < low ? `◂ ${number(d.mean)}` : `${number(d.mean)} ▸`, showarrow: false, xanchor: d.mean < low ? "left" : "right", font: { size: 11, color: soft } });
    traces.push({ type: "scatter", mode: "markers", showlegend: false, x: inside.map(d => d.mean), y: inside.map(d => position.get(d.row.kind)), xaxis: `x${suffix}`,
      error_x: { type: "data", array: inside.map(d => d.half || 0), thickness: 1.4, width: 3, color: soft },
      marker: { opacity: 1, color: looks.map(l => l[0]), symbol: inside.map((d, i) => looks[i][1] + (d.apart ? "" : "-open")), size: looks.map(l => l[1] === "star" ? 12 : 10), line: { color: looks.map(l => l[0]), width: inside.map(d => d.apart ? 0 : 1.8) } },
      text: inside.map(d => `${hover(d.row, d.row.values[facet.column.key])}<br>difference ${shown({ at: d.mean, half: d.half })}${d.p === null ? "<br>fewer than three common seeds: not tested" : `<br>p ${d.p.toPrecision(2)}, ${d.apart ? "told apart" : "not told apart"}`}`), hovertemplate: "%{text}<extra></extra>" });
    axes[`xaxis${suffix}`] = { domain, anchor: "y", range: [low, high], gridcolor: line, linecolor: line, zeroline: false, title: { text: `${facet.column.head} ${data.arrows[facet.column.better]}`, font: { size: 12 } }, tickangle: 0, nticks: plot.clientWidth * width > 400 ? 7 : 5 };
    shapes.push({ type: "line", xref: `x${suffix}`, x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: soft, width: 1.2 } });
  });
  const kinds = [...position], yaxis = { tickvals: kinds.map(([, i]) => i), ticktext: kinds.map(([kind]) => kind === base.kind ? `<b>${short(kind)}</b>` : short(kind)), range: [-0.6, kinds.length - 0.4] };
  const full = layout("", "", { shapes, annotations, yaxis, margin: { l: 16 + 6.3 * Math.max(...kinds.map(([kind]) => Math.min(kind.length, 34))), r: 14, t: 8, b: 44 } });
  full.yaxis.automargin = false;
  return Plotly.react(plot, traces, { ...full, ...axes }, config);
}

function drawCurve(plot, board, curve, rows) {
  const points = [...curve.points].sort((a, b) => a[0] - b[0]);
  const lines = rows.map(r => [r, points.filter(([, key]) => r.values[key]?.at !== undefined)]).filter(([, own]) => own.length > 1);
  const traces = lines.map(([r, own]) => {
    const [colour, symbol, dash] = styleOf(board, r);
    return { type: "scatter", mode: "lines+markers", name: short(r.label), x: own.map(p => p[0]), y: own.map(([, key]) => r.values[key].at),
      error_y: { type: "data", array: own.map(([, key]) => r.values[key].half || 0), thickness: 1, width: 2 },
      line: { color: r.is_sae ? colour : css("--soft"), width: 1.5, dash: r.is_sae ? dash : "dash" },
      marker: { size: 6, symbol: r.is_sae ? symbol + (r.untrained.length ? "-open" : "") : "circle" },
      text: own.map(([, key]) => hover(r, r.values[key])), hovertemplate: "%{text}<extra></extra>" };
  });
  plot.records = lines.flatMap(([r, own]) => own.map(([x, key]) => record(r, { [curve.over]: x, value: r.values[key].at, "half interval": r.values[key].half })));
  return Plotly.react(plot, traces, layout(curve.over, "", { xaxis: { type: "log", tickvals: points.map(p => p[0]) } }), config);
}

function drawDensities(plot, board, rows) {
  const middles = d => d.counts.map((_, i) => 10 ** (d.log10_from + (i + 0.5) / d.bins_per_decade));
  const traces = rows.map(r => {
    const d = r.densities, at = middles(d), [color, , dash] = styleOf(board, r);
    return { type: "scatter", mode: "lines", name: short(r.label), x: at, y: d.counts, line: { shape: "hvh", width: 1.5, color, dash },
      text: at.map((x, i) => `${hover(r)}<br>${number(d.counts[i])} latents near ${x.toPrecision(2)} of tokens, ${d.never} never`), hovertemplate: "%{text}<extra></extra>" };
  });
  plot.records = rows.flatMap(r => middles(r.densities).map((x, i) => record(r, { "share of tokens": x, "number of latents": r.densities.counts[i] })));
  return Plotly.react(plot, traces, layout("share of tokens", "latents", { xaxis: { type: "log", exponentformat: "power" } }), config);
}

function drawTraining(plot, board, name, runs) {
  const traces = runs.map(([r, log]) => ({
    type: "scatter", mode: "lines", connectgaps: true, name: short(r.label), x: log.tokens, y: log.values[name], line: { color: styleOf(board, r)[0], width: 1.5, dash: styleOf(board, r)[2] },
    text: log.values[name].map(v => hover(r, v === null ? undefined : { at: v, half: null })), hovertemplate: "%{text}<extra></extra>" }));
  plot.records = runs.flatMap(([r, log]) => log.tokens.map((t, i) => record(r, { "tokens so far": t, [name]: log.values[name][i] })));
  return Plotly.react(plot, traces, layout("tokens", "", { xaxis: { rangemode: "tozero" } }), config);
}

// Outlines of the markers, of radius 1, for keys beside names.
function outline(marker) {
  const ring = (n, turn, inner) => Array.from({ length: inner ? 2 * n : n }, (_, i) => {
    const angle = turn + Math.PI * 2 * i / (inner ? 2 * n : n), radius = inner && i % 2 ? inner : 1;
    return [radius * Math.sin(angle), -radius * Math.cos(angle)];
  });
  const plus = [[-1, -.35], [-.35, -.35], [-.35, -1], [.35, -1], [.35, -.35], [1, -.35], [1, .35], [.35, .35], [.35, 1], [-.35, 1], [-.35, .35], [-1, .35]];
  const shapes = { circle: ring(24, 0), square: ring(4, Math.PI / 4), diamond: ring(4, 0), "triangle-up": ring(3, 0), "triangle-down": ring(3, Math.PI), "triangle-left": ring(3, -Math.PI / 2), "triangle-right": ring(3, Math.PI / 2),
    cross: plus, x: plus.map(([x, y]) => [(x - y) * .75, (x + y) * .75]), star: ring(5, 0, .45), pentagon: ring(5, 0), hexagon: ring(6, Math.PI / 6), octagon: ring(8, Math.PI / 8), "diamond-tall": ring(4, 0).map(([x, y]) => [x * .6, y]) };
  return shapes[marker] || shapes.circle;
}

// In the colour of the page's theme, now and when it changes; in the legend on a piece of its line.
function glyph([light, dark, marker, ...lengths], onLine = false) {
  const of = name => document.createElementNS("http://www.w3.org/2000/svg", name), svg = of("svg"), shape = of("polygon");
  if (onLine) {
    const line = of("line");
    for (const [name, value] of [["x1", -3.3], ["x2", 3.3], ["stroke-width", 1.6], ["stroke-dasharray", lengths.join(" ") || "none"], ["vector-effect", "non-scaling-stroke"]]) line.setAttribute(name, value);
    line.style.stroke = `light-dark(${light}, ${dark})`;
    svg.append(line);
  }
  svg.setAttribute("viewBox", onLine ? "-3.3 -1.1 6.6 2.2" : "-1.1 -1.1 2.2 2.2"); svg.setAttribute("aria-hidden", "true");
  shape.setAttribute("points", outline(marker).map(p => p.map(v => v.toFixed(2)).join(",")).join(" ")); shape.style.fill = `light-dark(${light}, ${dark})`;
  svg.append(shape);
  return svg;
}
