const INITIAL = { metric: "", group: "", base: "", width: "auto", columns: "", query: "", varied: false, full: false, sort: null, descending: true, long: false };
const state = { board: 0, ...INITIAL, hidden: new Set(), unfolded: new Set(), open: new Set() };
const BASELINE = "stock:batchtopk", TRAINING = "training curves";
let boards = [];

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), c => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function start() {
  boards = JSON.parse(await unpack("boards"));
  for (const board of boards) for (const row of board.rows) row.text = row.label.toLowerCase();
  const script = document.createElement("script");
  script.textContent = await unpack("plotly");
  document.head.append(script);
  byId("legend").textContent = data.legend.replace("Bold", "Shaded");
  if (data.broken.length) byId("broken").textContent = `${data.broken.length} files hold no result: ${data.broken.join("; ")}`;
  fill(byId("board"), boards.map((b, i) => [i, b.title]));
  byId("board").onchange = e => { choose(+e.target.value); draw(); };
  for (const id of ["metric", "group", "base", "width", "columns"]) byId(id).onchange = e => {
    state[id] = e.target.value;
    if (id === "columns") state.sort = null;
    if (id === "group") state.base = "";
    draw();
  };
  byId("varied").onchange = e => { state.varied = e.target.checked; draw(); };
  byId("full").onchange = e => { state.full = e.target.checked; draw(); };
  byId("query").oninput = e => { state.query = e.target.value; draw(); };
  byId("filters").onclick = () => byId("filters").setAttribute("aria-expanded", byId("more").classList.toggle("unfolded"));
  byId("theme").onclick = () => { turn(); draw(); };
  byId("link").onclick = () => copy(location.href, "link");
  byId("csv").onclick = () => save("table.csv", tableCsv(boards[state.board]));
  byId("latex").onclick = () => {
    const board = boards[state.board];
    copy(tableLatex(board), `LaTeX of ${rows(board, true).length} rows and ${heads(board).length} columns, those chosen under Columns,`);
  };
  byId("long").onclick = () => { state.long = !state.long; table(boards[state.board]); };
  byId("leaderboard").ontoggle = () => { if (byId("leaderboard").open) table(boards[state.board]); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  byId("controls").onsubmit = e => e.preventDefault();
  addEventListener("hashchange", () => { if (location.hash.slice(1) !== remembered) { recall(); draw(); } });
  recall(); draw();
  document.body.dataset.ready = "yes"; performance.mark("ready");
}

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = document.createElement("textarea"), focused = document.activeElement;
    area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove(); focused?.focus();
  }
  byId("status").textContent = `${what} copied`; byId("status").dataset.copied = text;
  setTimeout(() => { byId("status").textContent = ""; }, 3000);
}

// What is chosen stands in the address, as far as it is not what a page opens with.
let remembered = "";
function remember() {
  const board = boards[state.board], parts = new URLSearchParams();
  if (state.board) parts.set("on", board.title);
  for (const name of ["metric", "base", "query", "sort"]) if (state[name]) parts.set(name, state[name]);
  if (state.group !== "") parts.set("at", board.groups[state.group]);
  if (state.width !== "auto") parts.set("width", state.width);
  if (state.columns !== usualColumns(board)) parts.set("columns", state.columns);
  if (state.sort && !state.descending) parts.set("order", "ascending");
  if (state.varied !== onlyVaried(board)) parts.set("varied", state.varied ? "yes" : "no");
  if (state.full) parts.set("full", "yes");
  for (const name of state.hidden) parts.append("hide", name);
  for (const name of state.unfolded) parts.append("open", name);
  remembered = parts.toString();
  if (location.hash.slice(1) !== remembered) history.replaceState(null, "", `#${remembered}`);
}

function recall() {
  remembered = location.hash.slice(1);
  const parts = new URLSearchParams(remembered), found = boards.findIndex(b => b.title === parts.get("on"));
  state.unfolded = new Set(parts.getAll("open"));
  choose(Math.max(0, found));
  const board = boards[state.board];
  for (const name of ["metric", "base", "query", "sort", "width", "columns"]) if (parts.has(name)) state[name] = parts.get(name);
  const group = board.groups.indexOf(parts.get("at"));
  if (group >= 0) state.group = String(group);
  if (parts.has("varied")) state.varied = parts.get("varied") === "yes";
  state.descending = parts.get("order") !== "ascending";
  state.full = parts.has("full");
  state.hidden = new Set(parts.getAll("hide"));
}

const questionOf = column => data.evaluations[column.evaluation].question;
const onlyVaried = board => !board.rows.some(r => r.is_sae && !r.varied);
function usualColumns(board) {
  const known = [...new Set(board.columns.map(c => c.evaluation))], usual = known.filter(e => data.usual.includes(e));
  return usual.length && usual.length < known.length ? "usual" : "all";
}

function choose(number) {
  const board = boards[number];
  Object.assign(state, INITIAL, { board: number, varied: onlyVaried(board), columns: usualColumns(board) });
  state.hidden.clear(); state.open.clear();
  const questions = data.questions.filter(q => board.columns.some(c => questionOf(c) === q));
  byId("metric").replaceChildren(...questions.map(question => {
    const set = document.createElement("optgroup");
    set.label = question;
    set.append(...board.columns.filter(c => questionOf(c) === question).map(c => {
      const option = new Option(`${c.head} ${data.arrows[c.better]}${c.trust === "trusted" ? " (trusted)" : ""}`, c.key);
      option.title = definition(c);
      return option;
    }));
    return set;
  }));
  fill(byId("columns"), [...(state.columns === "usual" ? [["usual", "usual evaluations"]] : []), ["all", "all"], ...questions.map(q => [q, q])]);
  byId("varying").hidden = !board.rows.some(r => r.varied);
  fill(byId("group"), [["", "L0 of most SAEs"], ...board.groups.map((title, i) => [i, title])]);
  const widths = [...new Set(board.rows.map(r => r.d_sae).filter(w => w))].sort((a, b) => a - b);
  fill(byId("width"), [["auto", "one above, all below"], ["", "all"], ...widths.map(w => [w, w.toLocaleString("en")])]);
  byId("names").replaceChildren(...Object.entries(board.styles).map(([name, style]) => {
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox"; box.value = name;
    box.onchange = () => { box.checked ? state.hidden.delete(name) : state.hidden.add(name); draw(); };
    label.append(box, glyph(style, true), name);
    return label;
  }), ...[["all", []], ["none", Object.keys(board.styles)]].map(([name, hidden]) => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = name; button.onclick = () => { state.hidden = new Set(hidden); draw(); };
    return button;
  }));
  byId("groups").replaceChildren(...[...questions, TRAINING].map(question => {
    const details = document.createElement("details"), summary = document.createElement("summary"), panels = document.createElement("div");
    const n = board.columns.filter(c => questionOf(c) === question).length, small = document.createElement("small");
    details.className = "question"; details.dataset.question = question; panels.className = "panels";
    details.hidden = question === TRAINING && !board.rows.some(r => r.logs.length);
    summary.textContent = question[0].toUpperCase() + question.slice(1);
    small.textContent = question === TRAINING ? "" : ` ${n} metric${n > 1 ? "s" : ""}: ${[...new Set(board.columns.filter(c => questionOf(c) === question).map(c => c.evaluation))].join(", ")}`;
    summary.append(small); details.append(summary, panels);
    details.open = state.unfolded.has(question);
    details.ontoggle = () => {
      if (details.open === state.unfolded.has(question)) return;
      details.open ? state.unfolded.add(question) : state.unfolded.delete(question);
      remember();
      if (details.open) later(panelsOf(board, question, panels)); else emptied(panels);
    };
    return details;
  }));
}

function definition(c) {
  const direction = { higher: "Higher is better.", lower: "Lower is better.", neither: "Neither direction is better." }[c.better];
  const trust = c.trust ? `${c.trust[0].toUpperCase()}${c.trust.slice(1)}${c.why_trust ? `: ${c.why_trust}` : ""}.` : "How far it can be trusted was not studied.";
  const { summary } = data.evaluations[c.evaluation];
  return `${c.head}: ${c.title}. ${direction} ${trust} From ${c.evaluation}${summary ? `: ${summary}${/[?.]$/.test(summary) ? "" : "."}` : "."}`;
}

function rows(board, matched, query = state.query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean), width = state.width, any = width === "auto" || width === "";
  return board.rows.filter(r => (!r.is_sae || ((state.varied || !r.varied) && !state.hidden.has(r.architecture) && (any || r.d_sae == width) && (!matched || state.group === "" || r.group == state.group))) && words.every(w => r.text.includes(w)));
}

const has = (r, key) => r.values[key]?.at !== undefined;
const known = (board, key) => board.rows.filter(r => r.is_sae && r.l0 && !r.untrained.length && has(r, key));

function headlineColumn(board) {
  const chosen = board.columns.find(c => c.key === state.metric), drawn = c => known(board, c.key).length > 1;
  return chosen || board.columns.find(c => c.trust === "trusted" && drawn(c)) || board.columns.find(c => c.against_l0 && drawn(c)) || board.columns.find(drawn) || board.columns[0];
}

// Width and number of training tokens in which most architectures have the metric, or those of the chosen rows.
function mainSizes(board, column) {
  const found = known(board, column.key).filter(r => (state.varied || !r.varied) && (state.group === "" || r.group == state.group) && (["auto", ""].includes(state.width) || r.d_sae == state.width));
  const sizes = new Map();
  for (const r of found) { const key = JSON.stringify([r.d_sae, r.tokens]); sizes.set(key, (sizes.get(key) || new Set()).add(r.architecture)); }
  const best = [...sizes].sort((a, b) => b[1].size - a[1].size)[0];
  return best ? JSON.parse(best[0]) : null;
}

function hasMainSizes(board, column) {
  const [width, tokens] = mainSizes(board, column) || [null, null];
  return r => state.width === "auto" ? r.d_sae === width && (r.untrained.length || r.tokens === tokens) : state.width === "" || r.d_sae == state.width;
}

function headlineRows(board, column) {
  const fits = hasMainSizes(board, column);
  return rows(board, false).filter(r => !r.is_sae || fits(r));
}

// The front does not depend on what is hidden or searched for.
function headlineFront(board, column) {
  return column.against_l0 ? paretoFront(known(board, column.key).filter(hasMainSizes(board, column)).filter(r => state.varied || !r.varied), column) : new Set();
}

const mostSeeds = members => [...members].sort((a, b) => a.control - b.control || b.seeds.length - a.seeds.length || a.kind.localeCompare(b.kind))[0].kind;

// Rows at one L0, one of each recipe, beside the baseline: differences in the trusted metrics and the chosen one.
// A search leaves the baseline where it is.
function compareToBaseline(board, column) {
  const sizes = mainSizes(board, column), usable = rows(board, false, "").filter(r => r.is_sae && r.l0 && has(r, column.key)), searched = new Set(rows(board, false));
  const levels = new Map();
  for (const r of usable) if (r.group >= 0 && (state.group === "" ? sizes && r.d_sae === sizes[0] && (r.untrained.length || r.tokens === sizes[1]) : r.group == state.group)) levels.set(r.group, [...(levels.get(r.group) || []), r]);
  const size = members => new Set(members.filter(r => !r.untrained.length).map(r => r.architecture)).size;
  const drawn = usable.map(r => r.l0).sort((a, b) => a - b), middle = Math.log(drawn[drawn.length >> 1]), far = members => Math.abs(Math.log(members[0].l0) - middle);
  const found = [...levels].sort((a, b) => size(b[1]) - size(a[1]) || far(a[1]) - far(b[1]))[0];
  if (!found) return null;
  const [level, members] = found, kinds = [...new Set(members.map(r => r.kind))].sort();
  const pick = kinds.includes(state.base) ? state.base : kinds.find(k => k === BASELINE) || kinds.find(k => k.toLowerCase().endsWith("batchtopk")) || mostSeeds(members);
  const centre = members.reduce((sum, r) => sum + Math.log(r.l0), 0) / members.length, nearest = (rows, l0) => [...rows].sort((a, b) => Math.abs(Math.log(a.l0) - l0) - Math.abs(Math.log(b.l0) - l0))[0];
  const base = nearest(members.filter(r => r.kind === pick), centre), wanted = kinds.filter(kind => kind === pick || members.some(r => r.kind === kind && searched.has(r)));
  const one = wanted.map(kind => kind === pick ? base : nearest(members.filter(r => r.kind === kind && searched.has(r)), Math.log(base.l0)));
  const columns = [column, ...board.columns.filter(c => c !== column && c.trust === "trusted")].slice(0, 3);
  const facets = columns.filter(c => has(base, c.key)).map(c => {
    const dots = one.filter(r => has(r, c.key)).map(r => r === base ? { row: r, mean: 0, half: null, p: null, apart: true } : { row: r, ...difference(r, base, c.key) });
    const others = dots.filter(d => d.row !== base), apart = holm(others.map(d => d.p)), sign = c.better === "lower" ? -1 : 1;
    others.forEach((d, i) => { d.apart = apart[i]; });
    return { column: c, dots: dots.sort((a, b) => sign * (b.mean - a.mean)) };
  });
  return facets.length ? { base, kinds, level, facets } : null;
}

function sentences(board, column, drawn, comparison) {
  const saes = drawn.filter(r => r.is_sae && r.l0 && has(r, column.key)), names = new Set(saes.map(r => r.architecture)), levels = saes.map(r => r.l0), sizes = mainSizes(board, column);
  const range = (values, unit) => { const low = Math.min(...values), high = Math.max(...values); return `${low === high ? low : `${low} to ${high}`} ${unit}`; };
  const seeds = saes.map(r => r.values[column.key].by?.filter(v => v !== null).length || 1), conditions = board.about[column.evaluation];
  byId("about").textContent = !saes.length ? `No SAE shown has ${column.head} and an L0: choose another metric, or show more SAEs.`
    : `${column.head[0].toUpperCase()}${column.head.slice(1)} of ${names.size} SAE architecture${names.size > 1 ? "s" : ""} on ${board.title}${sizes && sizes[0] && state.width === "auto" ? `, ${sizes[0].toLocaleString("en")} latents` : ""}, at L0 ${range(levels.map(l => Math.round(l)), "").trim()} (${range(seeds, seeds.every(s => s === 1) ? "seed" : "seeds")} each${conditions ? `; ${conditions}` : ""}).`;
  byId("finding").textContent = comparison ? finding(comparison, comparison.facets[0]) : "";
  byId("definition").textContent = definition(column);
}

function finding({ base }, { column, dots }) {
  const others = dots.filter(d => d.row !== base && !d.row.untrained.length), sign = column.better === "lower" ? -1 : 1;
  const list = found => found.map(d => d.row.kind).slice(0, 3).join(", ") + (found.length > 3 ? ", …" : "");
  const better = others.filter(d => d.apart && sign * d.mean > 0), worse = others.filter(d => d.apart && sign * d.mean < 0), rest = others.length - better.length - worse.length;
  const words = column.better === "neither" ? ["more", "less"] : ["better", "worse"], tested = others.some(d => d.p !== null);
  if (!others.length) return "";
  if (!tested) return `At L0 ≈ ${base.l0.toFixed(1)} there are fewer than three common seeds: no difference to ${base.kind} is tested.`;
  return `At L0 ≈ ${base.l0.toFixed(1)}, of ${others.length} other trained SAE${others.length === 1 ? "" : "s"} ${better.length} ${better.length === 1 ? "is" : "are"} ${words[0]} than ${base.kind}${better.length ? ` (${list(better)})` : ""}, ${worse.length} ${words[1]}, ${rest} not told apart from it.`;
}

function empty(figure, text) {
  const plot = figure.querySelector(".plot");
  if (plot) Plotly.purge(plot);
  const note = document.createElement("p");
  note.className = "empty"; note.textContent = text;
  figure.replaceChildren(note);
}

function whole(figure) { if (figure.querySelector(".empty")) figure.replaceChildren(); return figure; }

function draw() {
  const board = boards[state.board], column = headlineColumn(board);
  const drawn = headlineRows(board, column), comparison = compareToBaseline(board, column);
  for (const id of ["board", "group", "width", "columns", "query"]) byId(id).value = state[id];
  byId("metric").value = column.key; byId("metric").title = definition(column);
  byId("varied").checked = state.varied; byId("full").checked = state.full;
  document.querySelectorAll("#names input").forEach(box => { box.checked = !state.hidden.has(box.value); });
  const kinds = comparison ? comparison.kinds : [];
  fill(byId("base"), kinds.map(k => [k, k]));
  if (comparison) byId("base").value = comparison.base.kind;
  sentences(board, column, drawn, comparison);
  const saes = drawn.filter(r => r.is_sae && r.l0 && has(r, column.key));
  byId("names-drawn").textContent = `${new Set(saes.map(r => r.architecture)).size} of ${Object.keys(board.styles).length} architectures are drawn above`;
  if (saes.length) drawOverL0(panel(whole(byId("over")), `${column.head} ${data.arrows[column.better]} over L0`, headlineNote(board, column, drawn), definition(column)), board, column, drawn, true);
  else empty(byId("over"), "Nothing to draw over L0.");
  if (comparison) drawAgainst(panel(whole(byId("against")), `Difference to ${comparison.base.kind} at L0 ≈ ${comparison.base.l0.toFixed(1)}`, "Solid: told apart (paired t-tests, Holm, 5 %). Bars: 95 %."), board, comparison);
  else empty(byId("against"), "No SAEs of one width, number of training tokens and L0 have this metric.");
  later([() => { if (byId("leaderboard").open) table(board); }, ...[...document.querySelectorAll("details.question")].filter(d => d.open).flatMap(d => panelsOf(board, d.dataset.question, d.querySelector(".panels")))]);
  remember();
}

function headlineNote(board, column, drawn) {
  const front = headlineFront(board, column);
  const sizes = mainSizes(board, column), parts = [column.trust === "trusted" ? "Trusted metric" : column.trust ? `Read ${column.trust}` : ""];
  if (state.width === "auto" && sizes && sizes[0]) parts.push(`${sizes[0].toLocaleString("en")} latents, ${count(sizes[1])} tokens`);
  parts.push("bands: 95 %", drawn.some(r => front.has(r)) ? "rings: Pareto front" : "", known(board, column.key).some(r => r.source) && known(board, column.key).some(r => !r.source) ? "grey: published by others" : "");
  return parts.filter(Boolean).join(". ").replace(/\. ([a-z0-9])/g, "; $1") + ".";
}

function emptied(panels) {
  panels.querySelectorAll(".plot").forEach(plot => Plotly.purge(plot));
  panels.replaceChildren();
}

// One task for each panel of a question.
function panelsOf(board, question, parent) {
  emptied(parent);
  const put = (title, act, about = "", small = "") => () => { const figure = document.createElement("figure"); parent.append(figure); act(panel(figure, title, small, about)); };
  const chosen = rows(board, true), tasks = [];
  if (question === TRAINING) {
    const runs = chosen.flatMap(r => r.logs.map(log => [r, log]));
    for (const name of new Set(runs.flatMap(([, log]) => Object.keys(log.values)))) tasks.push(put(`training: ${name.replaceAll("_", " ").replace("heldout", "held-out")}`, plot => drawTraining(plot, board, name, runs.filter(([, log]) => name in log.values))));
    return tasks;
  }
  for (const column of board.columns.filter(c => questionOf(c) === question)) {
    const found = rows(board, false).filter(r => has(r, column.key));
    if (!found.some(r => r.is_sae && r.l0)) continue;
    tasks.push(put(`${column.title} ${data.arrows[column.better]}`, plot => drawOverL0(plot, board, column, found, false), definition(column), [column.evaluation, column.trust].filter(Boolean).join(", ")));
  }
  for (const curve of board.curves) {
    const [, key] = curve.points[0], evaluation = key.split(".")[0];
    if (data.evaluations[evaluation].question !== question || !chosen.some(r => curve.points.filter(([, k]) => has(r, k)).length > 1)) continue;
    tasks.push(put(`${curve.title} ${data.arrows[curve.better]}`.trim(), plot => drawCurve(plot, board, curve, chosen)));
  }
  const dense = chosen.filter(r => r.densities);
  if (question === data.evaluations.core?.question && dense.length) tasks.push(put("how often latents fire", plot => drawDensities(plot, board, dense)));
  return tasks;
}

// The table and the panels are drawn one by one, after the headline, so that the page stays responsive; what is waiting is dropped when the view changes.
let turnOf = 0;
function later(tasks) {
  const mine = ++turnOf, step = () => {
    if (mine !== turnOf) return;
    const task = tasks.shift();
    if (task) { task(); setTimeout(step); } else document.body.dataset.drawn = "yes";
  };
  document.body.dataset.drawn = "no";
  setTimeout(step);
}

start().catch(error => { byId("broken").textContent = `This page cannot be shown: ${error}`; throw error; });
