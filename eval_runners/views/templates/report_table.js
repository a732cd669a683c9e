const FEW_ROWS = 60;
const FIXED = [["SAE", r => r.label], ["L0", r => r.l0], ["latents", r => r.d_sae], ["tokens", r => r.tokens], ["seeds", r => r.seeds.length]];

function tableColumns(board) {
  const wanted = state.columns;
  return board.columns.filter(c => wanted === "all" || (wanted === "usual" ? data.usual.includes(c.evaluation) : questionOf(c) === wanted));
}

const heads = board => [...FIXED.map(([head, of]) => ({ head, of, fixed: true, id: head })), ...tableColumns(board).map(c => ({ head: `${c.head} ${data.arrows[c.better]}`.trim(), column: c, of: r => r.values[c.key]?.at, id: c.key }))];

function sorted(found, all) {
  const head = all.find(h => h.id === state.sort);
  if (!head) return found;
  const none = v => v === null || v === undefined, place = r => r.is_sae ? (r.untrained.length ? 2 : 0) : 1;  // the untrained and what is no SAE stay at the end
  return [...found].sort((a, b) => {
    if (place(a) !== place(b)) return place(a) - place(b);
    const [x, y] = [head.of(a), head.of(b)];
    if (none(x) || none(y)) return none(x) - none(y);
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return state.descending ? -order : order;
  });
}

function table(board) {
  const all = heads(board), row = document.createElement("tr");
  all.forEach((h, i) => {
    const th = document.createElement("th"), button = document.createElement("button");
    th.scope = "col"; button.type = "button"; button.textContent = h.head;
    if (h.column) button.title = definition(h.column);
    if (state.sort === h.id) th.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    button.onclick = () => {
      state.descending = state.sort === h.id ? !state.descending : i > 0 && h.column?.better !== "lower";
      state.sort = h.id; table(board); remember();
      document.querySelectorAll("#table th button")[i].focus();
    };
    th.append(button); row.append(th);
  });
  document.querySelector("#table thead").replaceChildren(row);
  const every = sorted(rows(board, true), all), found = state.long ? every : every.slice(0, FEW_ROWS);
  byId("long").hidden = every.length <= FEW_ROWS;
  byId("long").textContent = state.long ? `only the first ${FEW_ROWS} rows` : `all ${every.length} rows`;
  const body = document.createDocumentFragment();
  for (const r of found) { body.append(line(board, r, all)); if (state.open.has(r)) body.append(details(board, r, all)); }
  document.querySelector("#table tbody").replaceChildren(body);
  const notes = found.flatMap(r => r.untrained.length ? [`${r.label} is untrained: ${r.untrained.join("; ")}.`] : []);
  const sources = found.map(r => r.source).filter(Boolean).map(s => `Source: ${s}.`);
  const trust = tableColumns(board).filter(c => c.trust && c.trust !== "trusted").map(c => `${c.head}: ${[c.trust, c.why_trust].filter(Boolean).join(": ")}.`);
  byId("notes").textContent = [...new Set([...trust, ...notes, ...sources])].join(" ");
}

function details(board, r, all) {
  const tr = document.createElement("tr"), td = document.createElement("td"), list = document.createElement("dl");
  tr.className = "details"; td.colSpan = all.length;
  const ranks = all.filter(h => !h.fixed).flatMap(h => {
    const v = r.values[h.column.key];
    return v?.rank ? [["rank", `${v.rank} in ${h.column.title}`]] : v?.why ? [["no number", `${h.column.title}: ${v.why}`]] : [];
  });
  const group = board.groups[r.group];
  const facts = [...r.commands.map(c => ["command", c]), ...r.commits.map(c => ["commit", c]), ...r.untrained.map(u => ["untrained", u]),
    ...(r.seeds.length ? [["seeds", r.seeds.join(", ")]] : []), ...(group ? [["matched with", group]] : []), ...(r.source ? [["source", r.source]] : []), ...ranks];
  for (const [what, text] of facts) {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = what; dd.textContent = text; list.append(dt, dd);
  }
  td.append(list); tr.append(td);
  return tr;
}

function named(board, r) {
  const button = document.createElement("button");
  button.type = "button"; button.append(glyph(board.styles[r.architecture]), r.label + (r.untrained.length ? " (untrained)" : ""));
  button.setAttribute("aria-expanded", state.open.has(r));
  button.onclick = () => {
    state.open.has(r) ? state.open.delete(r) : state.open.add(r);
    table(board);
    [...document.querySelectorAll("#table td:first-child button")].find(b => b.textContent === button.textContent)?.focus();
  };
  return button;
}

function textOf(h, r) {
  if (!h.fixed) return shown(r.values[h.column.key]) + (r.values[h.column.key]?.front ? " ◆" : "");
  const value = h.of(r);
  if (h.head === "SAE") return r.label;
  return h.head === "L0" ? (value ? value.toFixed(1) : "-") : h.head === "tokens" ? count(value) : value ? value.toLocaleString("en") : "-";
}

function line(board, r, all) {
  const tr = document.createElement("tr");
  tr.className = r.untrained.length ? "untrained" : r.is_sae ? "" : "reference";
  for (const h of all) {
    const td = document.createElement("td");
    if (h.head === "SAE" && r.is_sae) td.append(named(board, r));
    else td.textContent = textOf(h, r);
    if (!h.fixed) {
      const value = r.values[h.column.key];
      if (value?.best) td.className = "best";
      if (value?.why || value?.rank) td.title = value.why || `rank ${value.rank} of its matched rows`;
    }
    tr.append(td);
  }
  return tr;
}

function tableCsv(board) {
  return csvOf(sorted(rows(board, true), heads(board)).map(r => record(r, Object.fromEntries(tableColumns(board).flatMap(c => [[c.key, r.values[c.key]?.at], [`${c.key} ±`, r.values[c.key]?.half]])))));
}

const LATEX = { "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "_": "\\_", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}", "<": "\\textless{}", ">": "\\textgreater{}",
  "±": "$\\pm$", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "◆": "$^\\diamond$", "α": "$\\alpha$", "λ": "$\\lambda$", "²": "$^2$", "≈": "$\\approx$", "≥": "$\\geq$", "≤": "$\\leq$", "×": "$\\times$" };
const latex = text => text.replace(/[\\{}_&%$#^~<>±↑↓◆αλ²≈≥≤×]/g, c => LATEX[c]);

// The table as it is shown, for the package booktabs; bold and the diamond as on the page.
function tableLatex(board) {
  const all = heads(board), found = sorted(rows(board, true), all);
  const cell = (h, r) => { const text = latex(textOf(h, r)); return !h.fixed && r.values[h.column.key]?.best ? `\\textbf{${text}}` : text; };
  const body = found.map(r => `${all.map(h => cell(h, r)).join(" & ")} \\\\`);
  return [`% ${board.title.replace(/\s+/g, " ")}; mean ± half of its 95 % interval over seeds; needs \\usepackage{booktabs}`, `\\begin{tabular}{l${"r".repeat(all.length - 1)}}`, "\\toprule", `${all.map(h => latex(h.head)).join(" & ")} \\\\`, "\\midrule", ...body, "\\bottomrule", "\\end{tabular}", ""].join("\n");
}
