// The card of one latent: explanation, scores beside their control, activations, windows, interventions.

const article = (entry, card) =>
  el("article", { "aria-label": `Latent ${entry.latent}` },
    explanations(card), numbers(entry, card), scores(card),
    el("div", { class: "pictures" }, histogram(card), lens(card)),
    windows(card), interventions(card), prompts(card));

const explanations = (card) => {
  const [first, ...others] = card.explanations;
  if (!first) return el("h3", { class: "failed" }, "No explanation");
  const box = el("div", {}, ...explanation(first, 0, card.explanations.length));
  // Both poles of a signed latent are said at once; repetitions wait to be asked for.
  if (others.length) {
    const list = el("ol", { start: 2 }, ...others.map((one) => el("li", {}, el("span", { class: one.text === null ? "failed" : null, dir: "auto" }, one.text === null ? `No explanation: ${words(one.status)}` : one.text), " ", el("small", {}, source(one).join(" · ")))));
    box.append(el("details", { class: "others", open: others.length < 3 }, el("summary", {}, `${others.length} more ${others.length > 1 ? "explanations" : "explanation"}`), list));
  }
  return box;
};

const source = (e) => {
  const by = [...e.by];
  if (e.setting) by.unshift(e.setting);
  if (e.n_windows !== null) by.push(`from ${e.n_windows} windows`);
  return by;
};

const explanation = (e, n, of) => {
  const text = e.text === null ? el("h3", { class: "failed" }, `No explanation: ${words(e.status)}`) : el("h3", { dir: "auto" }, e.text);
  const by = source(e);
  if (of > 1) by.unshift(`explanation ${n + 1} of ${of}`);
  if (e.text !== null && e.status !== "ok") by.push(words(e.status));
  return [text, el("p", { class: "by" }, by.join(" · "))];
};

const numbers = (entry, card) => {
  const item = (label, value) => el("span", {}, `${label} `, el("b", {}, value));
  const facts = card.facts;
  const line = el("p", { class: "numbers" }, item("latent", String(entry.latent)));
  if (head.groups.length > 1) line.append(item("of", head.groups[entry.group]));
  if (card.state !== null) line.append(item("state", card.state));
  line.append(item("density", share(facts.density)));
  if (facts.n_fired !== null) line.append(item("fired on", `${whole(facts.n_fired)} of ${whole(facts.n_tokens)} tokens`));
  if (facts.n_negative) line.append(item("negative on", whole(facts.n_negative)));
  line.append(item("max activation", figure(facts.max_activation)), item("mean", figure(facts.mean_activation)));
  return line;
};

const prompts = (card) => {
  if (!card.prompts.length) return null;
  return el("p", { class: "by prompts" }, "Prompts: ", ...card.prompts.flatMap(([who, sha], n) => [n ? ", " : null, `${who} `, el("code", {}, sha)]));
};

const TITLES = { explain: "Windows to explain from", score: "Held-out windows to score on" };

const windows = (card) => {
  if (!card.windows.length) return el("p", { class: "none" }, "No windows were kept for this latent.");
  const splits = new Map();
  for (const group of card.windows) {
    if (!splits.has(group.split)) splits.set(group.split, []);
    splits.get(group.split).push(group);
  }
  const which = [card.corpus === null ? null : `corpus ${card.corpus}`, card.draw === null ? null : `draw ${card.draw}`].filter(Boolean);
  const box = el("div", { class: "splits" });
  for (const [split, groups] of splits) {
    const part = el("section", {}, el("h4", {}, TITLES[split] || capital(words(split))));
    if (which.length) part.append(el("p", { class: "by" }, `of ${which.join(", ")}; scores above are of all`));
    if (split === "score" && card.tallies.length) part.append(el("p", { class: "by" }, card.tallies.map(tally).join(" · ")));
    for (const group of groups) {
      part.append(el("h5", {}, groupTitle(group, groups)), ...group.windows.map((one) => windowRow(one, card.max)));
    }
    box.append(part);
  }
  return box;
};

const tally = (one) => {
  const judged = (one.right || 0) + (one.wrong || 0);
  const said = judged ? [`${one.right || 0} of ${judged} ${one.ranked ? "on the right side" : "right"}`] : [];
  if (one.ungraded) said.push(`${one.ungraded} ${one.ranked ? "at the middle" : "answered"}`);
  if (one.failed) said.push(`${one.failed} failed`);
  return `${head.methods[one.method]}: ${said.join(", ")}`;
};

const groupTitle = (group, groups) => {
  const same = groups.filter((other) => other.kind === group.kind && other.pole === group.pole);
  const shown = same.reduce((sum, other) => sum + other.windows.length, 0);
  const of = group === same[0] && shown < group.total ? `, ${shown} of ${whole(group.total)} shown` : "";
  const kind = `${capital(group.kind)}${group.pole === null ? "" : group.pole < 0 ? ", negative pole" : ", positive pole"}`;
  if (group.quantile === null) return `${kind}${of}`;
  const end = group.quantile === group.quantiles - 1 ? ", strongest" : group.quantile === 0 ? ", weakest" : "";
  return `${kind}${of} · quantile ${group.quantile + 1} of ${group.quantiles}${end}`;
};

const windowRow = (one, max) =>
  el("div", { class: "window", title: `window ${one.id}${one.document === null ? "" : `, document ${one.document}`}` },
    el("span", { class: "peak" }, one.active.length ? figure(one.peak) : "0"),
    el("div", {}, tokens(one, max), verdicts(one.verdicts)));

const tokens = (one, max) => {
  const strength = new Map();
  for (let n = 0; n < one.active.length; n += 2) strength.set(one.active[n], one.active[n + 1]);
  const text = el("p", { class: "text", dir: "auto" });
  (one.pieces ? one.pieces.split("\x7f") : []).forEach((piece, at) => {
    const value = strength.get(at);
    if (value === undefined) return addPiece(text, piece);
    const part = max ? Math.abs(value) / max : 0;
    const mark = el("mark", { class: value < 0 && "negative", title: `activation ${figure(value)} (${Math.round(100 * part)}% of max)` });
    mark.style.setProperty("--a", Math.min(1, part).toFixed(3));
    addPiece(mark, piece);
    text.append(mark);
  });
  return text;
};

// A newline is shown as a sign and not as a break: windows are fragments, and layout would hide which token it is.
const addPiece = (into, piece) => {
  for (const part of piece.split(/(\n|\t)/)) {
    if (part === "\n") into.append(el("span", { class: "ws" }, "↵"), el("wbr"));
    else if (part === "\t") into.append(el("span", { class: "ws" }, "⇥\u00a0"));
    else if (part) into.append(part);
  }
};

const yes = (value) => (value ? "yes" : "no");

const verdicts = (list) => {
  if (!list.length) return null;
  return el("ul", { class: "verdicts" }, ...list.map(([method, right, label, prediction, number, side, status]) => {
    const name = head.methods[method];
    if (status !== null) return el("li", {}, `${name}: ${words(status)}`);
    const said = [prediction === null ? null : yes(prediction), number === null ? null : figure(number)].filter(Boolean).join(" ");
    const about = [];
    if (label !== null) about.push(label ? "the latent fires here" : "the latent is silent here");
    if (number !== null) about.push(`the scorer's number is ${figure(number, 3)}`);
    if (side !== null) about.push(`${label ? "above" : "below"} ${Math.round(100 * side)}% of the windows where the latent ${label ? "is silent" : "fires"}`);
    const sign = right === null ? null : el("b", {}, right ? " ✓" : " ✗", el("span", { class: "vh" }, right ? " right" : " wrong"));
    return el("li", { class: right === null ? null : right ? "right" : "wrong", title: about.join("; ") || null }, `${name}: ${said}`, sign);
  }));
};

const interventions = (card) => {
  if (!card.pairs.length) return null;
  const of = card.n_pairs > card.pairs.length ? `, ${card.pairs.length} of ${card.n_pairs} shown` : "";
  return el("section", {}, el("h4", {}, `Intervention: what the model writes without and with the latent steered${of}`),
    ...card.pairs.map((pair) =>
      el("div", { class: "pair" },
        el("div", {}, el("h5", {}, "Clean"), el("p", { class: "text", dir: "auto" }, pair.clean)),
        el("div", {}, el("h5", {}, `Steered${pair.probability === null ? "" : `, p = ${figure(pair.probability)}`}${pair.status === "ok" ? "" : `, ${words(pair.status)}`}`),
          el("p", { class: "text", dir: "auto" }, pair.steered)))));
};
