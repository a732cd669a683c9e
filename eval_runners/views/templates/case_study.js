const isPair = Boolean(data.about.other);
const ORDERS = [["as requested", null], ["largest share of variance first", r => r.rank], ["number", r => r.latent], ["most frequent first", r => -r.density], ["rarest first", r => r.density], ["largest activation first", r => -r.max], [data.about.features ? "best detectors first" : "best predicted by patterns first", r => -(r.score ?? -1)]];
if (isPair) ORDERS.push(["best match first", r => -(r.cosine ?? -2)], ["worst match first", r => r.cosine ?? -2]);
const rows = new Map(data.latents.map(r => [r.latent, r]));
const SHOWN_PATTERNS = 4;
let listed = data.latents, chosen = null;

function make(tag, text, attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== null && text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/* Characters that would show nothing, or reorder the text around them, are written as their numbers. */
const shown = text => visible(text).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
const alone = text => shown(text).replace(/^ +$/, spaces => "␣".repeat(spaces.length));
const percent = x => `${x === 0 ? "0" : x >= .1 ? (100 * x).toFixed(0) : (100 * x).toPrecision(2)} %`;
const number = x => x === null || x === undefined ? "-" : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= .001 || x === 0 ? String(+x.toPrecision(3)) : x.toExponential(1);

/* Contexts */

function context(excerpt, largest) {
  const token = (text, i) => {
    const act = excerpt.acts[i], span = make("span", shown(text), { class: i === excerpt.at ? "token most" : "token", "data-act": act });
    if (act > 0) span.style.setProperty("--a", (.15 + .85 * Math.min(1, act / largest)).toFixed(2));
    return span;
  };
  const tokens = excerpt.tokens.map(token), cut = () => make("span", "…", { class: "cut" }), [before, after] = excerpt.cut;
  const line = make("div", null, { class: "context", role: "button", tabindex: "0", "aria-expanded": "false" },
    make("span", number(excerpt.acts[excerpt.at]), { class: "act" }),
    make("span", null, { class: "words" },
      make("span", null, { class: "before" }, ...(before ? [cut()] : []), ...tokens.slice(0, excerpt.at)),
      make("span", null, { class: "after" }, ...tokens.slice(excerpt.at), ...(after ? [cut()] : []))));
  if (query() && excerpt.tokens.join("").toLowerCase().includes(query())) line.classList.add("hit");
  return make("li", null, {}, line);
}

const contexts = (excerpts, largest) => make("ol", null, { class: "contexts" }, ...excerpts.map(e => context(e, largest)));

/* Hides the words at the far end of a side of a context that do not fit wholly. */
function fitWords(side) {
  const far = side.className.startsWith("before"), parts = [...side.children], inText = /[\p{L}\p{N}]/u;
  side.classList.remove("short");
  parts.forEach(part => part.classList.remove("out"));
  const outward = far ? parts.reverse() : parts, widths = outward.map(part => part.getBoundingClientRect().width);
  if (!side.clientWidth || widths.reduce((a, b) => a + b, 0) <= side.clientWidth + 0.5) return;
  let room = side.clientWidth - parseFloat(getComputedStyle(side).fontSize), fit = 0;
  while (fit < outward.length && widths[fit] <= room) room -= widths[fit++];
  const cutsWord = at => {
    const [left, right] = (far ? [outward[at], outward[at - 1]] : [outward[at - 1], outward[at]]).map(part => part.textContent);
    return inText.test(left.at(-1)) && inText.test(right[0]);
  };
  const least = far ? 0 : 1;  // the token that fires is always shown
  while (fit > least && cutsWord(fit)) fit--;
  outward.slice(Math.max(fit, least)).forEach(part => part.classList.add("out"));
  side.classList.add("short");
}

function showTip(token) {
  const tip = byId("tip"), box = token.getBoundingClientRect();
  tip.hidden = false;
  tip.textContent = `${JSON.stringify(token.textContent)}  ${number(+token.dataset.act)}`;
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${box.bottom + tip.offsetHeight + 6 > innerHeight ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`;
}

function hideTip() {
  byId("tip").hidden = true;
  document.querySelectorAll(".here").forEach(token => token.classList.remove("here"));
}

function walk(line, by) {
  const tokens = [...line.querySelectorAll(".token")], at = tokens.findIndex(token => token.classList.contains("here"));
  const next = tokens[at < 0 ? tokens.findIndex(token => token.classList.contains("most")) : Math.min(Math.max(at + by, 0), tokens.length - 1)];
  hideTip();
  line.setAttribute("aria-expanded", "true");
  next.classList.add("here");
  showTip(next);
}

const openLine = line => line.setAttribute("aria-expanded", String(line.getAttribute("aria-expanded") !== "true"));

/* Panels of a latent */

function drawing(values, top, describe, label, mean = null) {
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg"), width = 100 / values.length;
  const add = (parent, tag, attributes) => { const e = document.createElementNS(ns, tag); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); parent.append(e); return e; };
  for (const [k, v] of Object.entries({ viewBox: "0 0 100 46", preserveAspectRatio: "none", role: "img", "aria-label": label })) svg.setAttribute(k, v);
  values.forEach((value, i) => add(add(svg, "rect", { x: i * width + width * .06, width: width * .88, y: 46 - 44 * value / top, height: 44 * value / top }), "title", {}).textContent = describe(value, i));
  if (mean !== null) add(svg, "line", { x1: 0, x2: 100, y1: 46 - 44 * mean / top, y2: 46 - 44 * mean / top, "vector-effect": "non-scaling-stroke" });
  return svg;
}

const figure = (svg, ...ends) => make("figure", null, {}, svg, make("figcaption", null, {}, ...ends.map(end => make("span", end))));

function histogram(h) {
  const edge = i => number(h.low + (h.high - h.low) * i / h.counts.length);
  const svg = drawing(h.counts, Math.max(...h.counts), (n, i) => `${n} tokens with ${edge(i)} to ${edge(i + 1)}`, `Histogram of activations from ${number(h.low)} to ${number(h.high)}: ${h.counts.join(", ")} tokens`);
  return figure(svg, number(h.low), "activation", number(h.high));
}

function positions(rates) {
  const svg = drawing(rates, Math.max(2, ...rates), x => `${number(x)} times the mean rate`, `Firing rate by position, relative to its mean: ${rates.map(number).join(", ")}`, 1);
  return figure(svg, "start", "position (dashed: mean)", "end");
}

const bar = (text, value, share, edge) => make("li", null, { style: `--share: ${(100 * Math.min(1, share)).toFixed(1)}%` }, make("span", text, edge ? { class: "edge" } : {}), make("span", value, { class: "value" }));
const shares = (list, edge) => make("ul", null, { class: "bars" }, ...list.map(([text, share]) => text === null ? bar(edge, percent(share), share, true) : bar(alone(text), percent(share), share)));

function effects(list, kind) {
  const top = Math.max(...list.map(w => Math.abs(w[1])), 1e-12);
  return make("ul", null, { class: `bars ${kind}` }, ...list.map(([text, value]) => bar(alone(text), number(value), Math.abs(value) / top)));
}

const titled = (title, ...parts) => make("div", null, {}, make("h3", title), ...parts);
const column = (title, part) => make("div", null, {}, make("h4", title), part);
function reference(n, label, canLink) {
  const name = canLink && rows.has(n) ? make("a", String(n), { href: `#latent-${n}` }) : make("span", String(n));
  return make("span", null, {}, name, ` ${shown(label || "(does not fire)")}`);
}

function related(title, list, canLink) {
  if (!list.length) return titled(title, make("p", "none", { class: "soft" }));
  const items = list.map(([n, value, label]) => make("li", null, { style: `--share: ${(100 * Math.max(0, Math.min(1, value))).toFixed(1)}%` }, reference(n, label, canLink), make("span", value.toFixed(2), { class: "value" })));
  return titled(title, make("ul", null, { class: "bars" }, ...items));
}

function patterns(p) {
  if (!p.patterns.length) return make("p", "Patterns of tokens (N2G): no pattern keeps half of the activation.", { class: "soft" });
  const chips = list => make("ul", null, { class: "chips" }, ...list.map(text => make("li", text)));
  const score = `Patterns of tokens (N2G; * is any token), on other contexts F1 ${number(p["firing f1"])}, precision ${number(p["firing precision"])}, recall ${number(p["firing recall"])}: `;
  const found = make("div", score, { class: "soft patterns" }, chips(p.patterns.slice(0, SHOWN_PATTERNS)));
  const rest = p.patterns.slice(SHOWN_PATTERNS);
  if (rest.length) found.append(make("details", null, {}, make("summary", `${rest.length} more`), chips(rest)));
  return found;
}

function effect(e) {
  const beside = [`ablating a random direction of equal norm by ${number(e.kl_random)}`];
  if (e.kl_children !== undefined) beside.push(`ablating its children by ${number(e.kl_children)}` + (e.children_share === null ? "" : ` (they make ${percent(e.children_share)} of its change of the logits)`));
  return titled("Effect on the next token", make("p", `Ablating it changes the prediction by ${number(e.kl)} nats (KL divergence, mean over ${e.places} ${e.places === 1 ? "token" : "tokens"}), ${beside.join(", ")}. The log-probability of the likeliest token changes by ± ${number(e.top_change)} nats.`));
}

function child(row, twoLevels, canLink) {
  const largest = Math.max(...row.top.flatMap(e => e.acts));
  const summary = make("summary", twoLevels ? `lower latent ${row.latent} ` : "latent ", {}, ...(twoLevels ? [] : [reference(row.latent, " ", canLink)]), make("code", shown(row.label)), make("span", ` ${number(row.bits)} bits about its parent; fires on ${percent(row.density)} of tokens, on ${percent(row.within)} of those with its parent`, { class: "soft" }));
  const details = make("details", null, { class: "child" }, summary, contexts(row.top, largest));
  details.open = Boolean(details.querySelector(".hit"));
  return make("li", null, {}, details);
}

function tree(r, twoLevels, canLink) {
  const c = r.children;
  const most = c.rows.length < c.alive ? `; the ${c.rows.length} that tell most about its firing` : "";
  return titled(`Children: ${c.count}, of which ${c.alive} fire${most}`, make("ul", null, { class: "tree" }, ...c.rows.map(row => child(row, twoLevels, canLink))));
}

/* Latents of an SAE of a synthetic model: the true features are known, and there is no text. */

const named = (f, cosine) => `feature ${f}${cosine === undefined ? "" : `, cosine ${cosine.toFixed(2)}`}`;

function truth(r) {
  const t = r.truth, parts = [`Feature ${t.feature}, cosine ${t.cosine.toFixed(2)}. It fires on ${percent(t.rate)} of tokens, with a mean strength of ${number(t.strength)}`];
  if (t.half_life !== null) parts.push(`a half-life of ${number(t.half_life)} tokens`);
  if (t.parent !== null) parts.push(`feature ${t.parent} as its parent`);
  const detects = t.f1 === null ? [] : [make("p", `As a detector of it the latent has F1 ${number(t.f1)}: the feature is there on ${percent(t.precision)} of the tokens on which the latent fires (precision), and the latent fires on ${percent(t.recall ?? 0)} of the feature's (recall).`)];
  const lists = make("div", null, { class: "panels" },
    ...(t.there.length ? [titled("Features there where it fires, the largest excess over their rate first (share of its tokens; of all tokens)", make("ul", null, { class: "bars" }, ...t.there.map(([f, share, rate]) => bar(named(f), `${percent(share)}; ${percent(rate)}`, share))))] : []),
    titled("Features next to it (cosine)", make("ul", null, { class: "bars" }, ...t.nearest.map(([f, cosine]) => bar(named(f), cosine.toFixed(2), Math.abs(cosine))))),
    ...(r.histogram ? [titled("How strongly it fires", histogram(r.histogram))] : []));
  return [titled("Nearest true feature", make("p", `${parts.join(", ")}.`), ...detects), lists];
}

function trueTree(c, twoLevels, canLink) {
  const verdict = { true: "✓ true child of this latent's feature: ", false: "✗ no child of this latent's feature: ", same: "= this latent's feature itself: ", null: "" };
  const found = c.right === null ? "" : `; ${c.right} as in the true tree`;
  const rows = c.rows.map(row => make("li", null, {}, make("span", verdict[row.edge]), make("code", named(row.feature, row.cosine)),
    make("span", ` (${twoLevels ? "lower " : ""}latent `, { class: "soft" }, ...(twoLevels ? [String(row.latent)] : [reference(row.latent, " ", canLink)]), `${row.edge === "false" && row.parent !== null ? `; the feature's true parent is feature ${row.parent}` : ""}; F1 ${number(row.f1)}; fires on ${percent(row.density)} of tokens, on ${percent(row.within)} of those with its parent)`)));
  return titled(`Children: ${c.count}, of which ${c.alive} fire${found}${c.rows.length < c.alive ? `; the ${c.rows.length} most frequent` : ""}`, make("ul", null, { class: "tree" }, ...rows));
}

function article(r, about, canLink = true) {
  const name = isPair ? `Latent ${r.latent} of ${about.sae}` : `Latent ${r.latent}`;
  const found = make("article", null, { id: canLink ? "article" : "match", "aria-label": name });
  if (isPair) found.append(make("p", about.sae, { class: "sae" }));
  found.append(make("h2", `Latent ${r.latent}`, {}, ...(r.label ? [make("code", shown(r.label))] : [])));
  found.append(make("p", r.density ? `Fires on ${percent(r.density)} of tokens, with an activation of at most ${number(r.max)}. Over all tokens, ablating it lowers the explained variance by ${percent(Math.max(r.gain, 0))}: rank ${r.rank} of ${about.d_sae.toLocaleString("en")} latents.` : `It does not fire on ${r.truth ? "these tokens" : "this text"}.`, { class: "soft" }));
  if (r.parent) found.append(make("p", "Child of latent ", {}, reference(...r.parent, canLink)));
  if (r.truth) found.append(...truth(r));
  if (r.true_children?.count) found.append(trueTree(r.true_children, about.two_levels, canLink));
  if (r.top) found.append(patterns(r.patterns));
  const upper = [], lower = make("div", null, { class: "panels" });
  const strongest = r.top ? [titled("Contexts with its largest activations", contexts(r.top, r.max))] : [];
  if (r.top) upper.push(titled("Tokens, by share of its activation", make("div", null, { class: "three" }, column("before", shares(r.tokens.before, "start")), column("it fires on", shares(r.tokens.on, "")), column("after", shares(r.tokens.after, "end")))));
  if (isPair) found.append(...upper.splice(0), ...strongest.splice(0));
  if (r.raised?.length) upper.push(titled("Logits of its decoder row", make("div", null, { class: "two" }, column("raises", effects(r.raised, "up")), column("lowers", effects(r.lowered, "down")))));
  if (r.top) upper.push(titled("Where and how strongly", histogram(r.histogram), positions(r.positions)));
  found.append(make("div", null, { class: isPair ? "panels" : "panels top" }, ...upper), ...strongest);
  if (r.top) {
    for (const part of r.lower) found.append(titled(`Contexts near the ${100 * part.quantile} % quantile of the others`, contexts(part.excerpts, r.max)));
    if (r.children?.count) found.append(tree(r, about.two_levels, canLink));
  }
  lower.append(related("Nearest decoder rows (cosine)", r.nearest, canLink));
  if (r.density) lower.append(related("Correlated activations (Pearson)", r.correlated, canLink), related("Fire together (share of the tokens of either)", r.together, canLink));
  found.append(lower, ...(r.effect ? [effect(r.effect)] : []));
  return found;
}

function unmatched(nearest) {
  const found = [make("p", data.about.other.sae, { class: "sae" }), make("p", "No latent is left to match it: each latent matches one other at most.")];
  if (nearest) found.push(make("p", "The nearest decoder row is that of latent ", {}, reference(nearest[0], nearest[2], false), `, with cosine ${nearest[1].toFixed(2)}.`));
  return make("div", null, {}, ...found);
}

function pair(r) {
  const right = r.match ? article(r.match.row, data.about.other, false) : unmatched(r.nearest_other);
  const title = r.match ? `Matched by decoder direction: cosine ${r.cosine.toFixed(2)}, correlation of activations ${number(r.match.correlation)}.` : "";
  return [make("p", title, { class: "matched" }), make("div", null, { class: "pair" }, article(r, data.about), right)];
}

/* Latents that lie in files of their own are read when they are chosen, all of them for a search. */

const requests = new Map();

function receive(row) {
  Object.assign(rows.get(row.latent), row, { file: null });
}

function loaded(r) {
  if (!r.file) return Promise.resolve();
  if (!requests.has(r.latent)) requests.set(r.latent, new Promise((done, failed) => {
    const script = make("script", null, { src: r.file });
    script.onload = done;
    script.onerror = () => failed(new Error(`${r.file} is missing: the files of this folder belong together`));
    document.head.append(script);
  }));
  return requests.get(r.latent);
}

/* The list */

const query = () => byId("search").value.trim().toLowerCase();
const joined = excerpts => excerpts.map(e => e.tokens.join("")).join("\n");

function searched(r) {
  const parts = { "": [r.latent, r.label, ...(r.patterns?.patterns || []), ...(r.raised || []).map(w => w[0]), ...(r.lowered || []).map(w => w[0]), joined(r.top || []), ...(r.truth?.there || []).map(([f]) => named(f))].join("\n"), "in a weaker context": joined((r.lower || []).flatMap(part => part.excerpts)), "in a child": [...(r.children?.rows || []).map(row => `${row.latent}\n${row.label}\n${joined(row.top)}`), ...(r.true_children?.rows || []).map(row => `${row.latent}\n${named(row.feature)}`)].join("\n") };
  const places = Object.entries(parts).map(([where, text]) => [where, text.toLowerCase()]);
  return r.match ? [...places, [`in ${data.about.other.sae}`, searched(r.match.row).map(([, text]) => text).join("\n")]] : places;
}

const texts = new Map();

function placeOf(r, wanted) {
  if (!texts.has(r.latent) && !r.file) texts.set(r.latent, searched(r));
  return (texts.get(r.latent) || [["", `${r.latent}\n${r.label}`.toLowerCase()]]).find(([, text]) => text.includes(wanted))?.[0];
}

function item(r) {
  const score = isPair ? (r.cosine === null ? "-" : r.cosine.toFixed(2)) : r.score === null ? "-" : r.score.toFixed(2);
  const cells = [make("span", String(r.latent)), make("span", r.label ? shown(r.label) : "does not fire", { class: "label" }), make("span", percent(r.density)), make("span", score)];
  const element = make("li", null, { role: "option", id: `option-${r.latent}`, class: "row", "aria-selected": "false" }, ...cells);
  element.onclick = () => choose(r, true);
  return element;
}

const items = new Map(data.latents.map(r => [r.latent, item(r)]));

function list() {
  const wanted = query(), by = ORDERS[+byId("order").value][1];
  listed = data.latents.filter(r => {
    const where = wanted ? placeOf(r, wanted) : "";
    items.get(r.latent).querySelector(".where")?.remove();
    if (where) items.get(r.latent).append(make("span", where, { class: "soft where" }));
    return where !== undefined;
  });
  if (by) listed.sort((a, b) => by(a) - by(b));
  byId("list").replaceChildren(...listed.map(r => items.get(r.latent)));
  const total = data.latents.length;
  byId("count").textContent = listed.length === total ? `${total} ${total === 1 ? "latent" : "latents"}` : `${listed.length} of ${total} latents`;
}

async function search() {
  list();
  const missing = query() ? data.latents.filter(r => r.file) : [];
  if (missing.length) {
    byId("count").textContent += `; reading the contexts of ${missing.length}`;
    await Promise.allSettled(missing.map(loaded));
    list();
  }
  if (listed.length && !listed.includes(chosen)) choose(listed[0]);
  else if (chosen) choose(chosen);
}

async function choose(r, scroll = false) {
  chosen = r;
  document.querySelector("#list [aria-selected=true]")?.setAttribute("aria-selected", "false");
  items.get(r.latent).setAttribute("aria-selected", "true");
  byId("list").setAttribute("aria-activedescendant", `option-${r.latent}`);
  showInList(items.get(r.latent));
  hideTip();
  history.replaceState(null, "", `#latent-${r.latent}`);
  try {
    await loaded(r);
    byId("broken").textContent = "";
  } catch (error) {
    byId("broken").textContent = error.message;
    return;
  }
  if (chosen !== r) return;
  byId("latent").replaceChildren(...(isPair ? pair(r) : [article(r, data.about)]));
  byId("latent").setAttribute("aria-label", `Latent ${r.latent}`);
  if (scroll) byId("latent").scrollIntoView({ block: "nearest" });
  if (scrollY > byId("latent").offsetTop && innerWidth > 820) scrollTo(0, byId("latent").offsetTop);
}

function showInList(element) {
  const box = byId("list"), top = element.offsetTop - box.offsetTop;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + element.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + element.offsetHeight - box.clientHeight;
}

function step(by) {
  if (!listed.length) return;
  const at = listed.indexOf(chosen);
  choose(listed[at < 0 ? 0 : Math.min(Math.max(at + by, 0), listed.length - 1)]);
}

function followAddress() {
  const r = rows.get(+(location.hash.match(/^#latent-(\d+)$/)?.[1] ?? NaN));
  if (r && r !== chosen) choose(r);
  return r;
}

/* Keys */

function keyOf(e) {
  const at = document.activeElement;
  if (at === byId("search")) return { Escape: () => at.blur(), ArrowDown: () => step(1), ArrowUp: () => step(-1), Enter: () => byId("list").focus() }[e.key];
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(at.tagName)) return e.key === "Escape" ? () => at.blur() : undefined;
  const anywhere = { j: () => step(1), k: () => step(-1), "/": () => byId("search").focus(), t: turn, Escape: () => { hideTip(); at.blur(); } }[e.key];
  if (anywhere) return anywhere;
  if (at === byId("list")) return { ArrowDown: () => step(1), ArrowUp: () => step(-1), PageDown: () => step(10), PageUp: () => step(-10), Home: () => step(-listed.length), End: () => step(listed.length), Enter: () => { byId("latent").focus({ preventScroll: true }); byId("latent").scrollIntoView({ block: "nearest" }); } }[e.key];
  if (at.classList.contains("context")) return { ArrowRight: () => walk(at, 1), ArrowLeft: () => walk(at, -1), Enter: () => openLine(at), " ": () => openLine(at) }[e.key];
}

function start() {
  const a = data.about, count = side => `${side.d_sae.toLocaleString("en")} latents, of which ${side.alive.toLocaleString("en")} fire`;
  const title = isPair ? `Latents of ${a.sae} beside those of ${a.other.sae}` : `Latents of ${a.sae}`;
  byId("title").textContent = document.title = title;
  const sizes = isPair ? `${a.sae}: ${count(a)}; ${a.other.sae}: ${count(a.other)}` : count(a);
  byId("about").textContent = `${sizes} on ${a.tokens.toLocaleString("en")} ${a.features ? "sampled" : "held-out"} tokens in ${a.contexts} contexts. ${a.model}, ${a.hook}.` + (a.features ? ` Its ${a.features.toLocaleString("en")} features are known, and there is no text.` : "") + (a.latents.startsWith("best") ? " Listed first is the latent that explains the most variance per token on which it fires. Ranks are by the variance that a latent explains over all tokens, so a rare latent can be listed first and rank low." : a.latents.startsWith("random") ? " Listed is a random sample." : "");
  if (a.features) byId("help").querySelector("p").textContent = "There is no text: the synthetic model adds up true features, and which ones are there on a token is known. A latent is compared with the feature whose direction is nearest to its decoder row; precision, recall and F1 are those of the latent as a detector of that feature.";
  if (a.features) byId("help").querySelectorAll("p")[1].remove();
  byId("heads").append(...["latent", a.features ? "nearest feature" : "patterns or tokens", "fires on", isPair ? "cosine" : "F1"].map(head => make("span", head)));
  byId("order").replaceChildren(...ORDERS.map(([name], i) => new Option(name, i)));
  byId("search").oninput = search;
  byId("order").onchange = list;
  byId("theme").onclick = turn;
  byId("controls").onsubmit = e => e.preventDefault();
  const section = byId("latent");
  section.onclick = e => { const line = e.target.closest(".context"); if (line && !String(getSelection())) openLine(line); };
  section.onmouseover = e => { hideTip(); const token = e.target.closest(".token"); if (token) showTip(token); };
  section.onmouseleave = section.onfocusout = hideTip;
  new ResizeObserver(() => section.querySelectorAll(".context[aria-expanded=false] :is(.before, .after)").forEach(fitWords)).observe(section);
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("hashchange", followAddress);
  addEventListener("keydown", e => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const action = keyOf(e);
    if (action) { e.preventDefault(); action(); }
  });
  list();
  if (!followAddress()) choose(listed[0]);
  document.body.dataset.ready = "yes";
}

try { start(); } catch (error) { byId("broken").textContent = `This page cannot be shown: ${error}`; throw error; }
