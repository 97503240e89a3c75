// Compare two runs of the page. Everything that comes from a run enters the page as text, never as markup.
(() => {
  const held = document.getElementById("run-data");
  if (held === null) return;
  const runs = JSON.parse(held.textContent), place = (name) => document.getElementById(`compare-${name}`);
  const svg = place("curves"), sides = ["first", "second"], chosen = sides.map(place);
  const width = 720, height = 300, left = 56, right = 12, top = 10, bottom = 38;
  const made = (element, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element; };
  const make = (name, attributes, ...children) => made(document.createElement(name), attributes, children);
  const draw = (name, attributes, ...children) =>
    made(document.createElementNS(svg.namespaceURI, name), attributes, children);
  const number = (value, digits) => value === null || !Number.isFinite(value) ? "—"
    : value.toFixed(digits).replace("-", "−");
  const row = (cell, values) => make("tr", {}, ...values.map((value) => make(cell, {}, value)));
  const style = (run, arm) => arm.reference && run.arms.length > 1 ? "reference" : "candidate";

  const ticks = (low, high, count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step + 0);
    return [found, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))]; };

  const limits = (arms) => {
    const last = Math.max(1, ...arms.map((arm) => arm.steps.at(-1)));
    const all = arms.flatMap((arm) => arm.steps.map((step, index) => [step, arm.losses[index]]));
    const late = all.filter(([step]) => step >= last / 10);
    const losses = (late.length > 1 ? late : all).map(([, loss]) => loss);
    const low = Math.min(...losses), high = Math.max(...losses), margin = 0.06 * (high - low) || 0.1;
    return [last, low - margin, high + margin]; };

  const unitsOf = (pair) => [...new Set(pair.filter((run) => run.arms.length).map((run) => `nats/${run.unit}`))]
    .join(" or ") || "nats";

  const axes = (last, low, high, x, y, units) => {
    const [losses, digits] = ticks(low, high, 6), [steps] = ticks(0, last, 6);
    for (const loss of losses) svg.append(
      draw("line", { class: "grid", x1: left, x2: width - right, y1: y(loss), y2: y(loss) }),
      draw("text", { x: left - 6, y: y(loss) + 4, "text-anchor": "end" }, number(loss, digits)));
    for (const step of steps) svg.append(
      draw("line", { class: "grid", x1: x(step), x2: x(step), y1: top, y2: height - bottom }),
      draw("text", { x: x(step), y: height - bottom + 15, "text-anchor": "middle" }, step.toLocaleString("en")));
    const middle = (top + height - bottom) / 2;
    svg.append(draw("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "steps"),
      draw("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` },
        `validation loss, ${units}`)); };

  const curve = (run, side, arm, x, y) => {
    const at = arm.steps.map((step, index) => [x(step), y(arm.losses[index])]);
    const seen = arm.steps.length <= 25 ? " seen" : "";
    const points = at.map(([across, down], index) => {
      const label = draw("title", {}, `${run.label}, ${arm.name}, step ${arm.steps[index]}: ${arm.losses[index]}`);
      return side === "first" ? draw("circle", { class: `point${seen}`, cx: across, cy: down, r: 3 }, label)
        : draw("rect", { class: `point${seen}`, x: across - 3, y: down - 3, width: 6, height: 6 }, label); });
    return draw("g", { class: `${side} curve` }, draw("polyline", { class: style(run, arm), points: at.join(" ") }),
      ...points); };

  const showCurves = (pair) => {
    svg.replaceChildren();
    const arms = pair.flatMap((run) => run.arms).filter((arm) => arm.steps.length > 0);
    svg.style.display = arms.length ? "" : "none";
    if (!arms.length) return;
    const [last, low, high] = limits(arms);
    const x = (step) => left + step / last * (width - left - right);
    const y = (loss) => top + (high - loss) / (high - low) * (height - top - bottom);
    axes(last, low, high, x, y, unitsOf(pair));
    svg.append(draw("clipPath", { id: "compare-frame" }, draw("rect",
      { x: left, y: top - 4, width: width - left - right + 4, height: height - top - bottom + 8 })));
    const inside = draw("g", { "clip-path": "url(#compare-frame)" });
    pair.forEach((run, index) => run.arms.filter((arm) => arm.steps.length > 0)
      .forEach((arm) => inside.append(curve(run, sides[index], arm, x, y))));
    svg.append(inside); };

  const columnsOf = (pair) => {
    const units = unitsOf(pair), measured = pair.flatMap((run) => run.arms.flatMap((arm) => Object.keys(arm.metrics)));
    return [[`final loss, ${units}`, (run, arm) => number(arm.final, 4)],
      ...(pair.some((run) => run.per_byte !== null) ? [["nats/byte", (run, arm) =>
        number(arm.final === null || run.per_byte === null ? null : arm.final * run.per_byte, 4)]] : []),
      [`best loss, ${units}`, (run, arm) => number(arm.best, 4)],
      ...[...new Set(measured)].map((name) => [name, (run, arm) =>
        name in arm.metrics ? `${number(100 * arm.metrics[name], 1)} %` : "—"])]; };

  const showFinals = (pair) => {
    const columns = columnsOf(pair), unknown = ["—", ...columns.map(() => "—")];
    const rows = pair.flatMap((run, index) => {
      const line = (arm) => draw("svg", { class: `swatch ${arm ? style(run, arm) : ""}`, viewBox: "0 0 32 8" },
        draw("line", { x1: 0, x2: 32, y1: 4, y2: 4 }));
      const name = (arm) => make("span", { class: sides[index] }, ...(arm ? [line(arm)] : []),
        make("a", { href: run.address }, "AB"[index]));
      if (!run.arms.length) return [row("td", [name(null), "—", "—", "—", run.status, ...unknown])];
      return run.arms.map((arm) => row("td", [name(arm),
        make("span", {}, arm.name, ...(arm.leaky ? [" ", make("span", { class: "leaky" }, "LEAKY")] : [])),
        arm.optimizer, run.seed === null ? "—" : String(run.seed), arm.status, run.data || "—",
        ...columns.map(([, cell]) => cell(run, arm))])); });
    place("finals").replaceChildren(make("thead", {}, row("th", ["run", "arm", "optimizer", "seed", "status", "data",
      ...columns.map(([heading]) => heading)])), make("tbody", {}, ...rows)); };

  const showDifference = ([first, second]) => {
    const [mine, theirs] = [second, first].map((run) => run.arms.at(-1)?.final ?? null);
    const leaky = [first, second].some((run) => run.arms.at(-1)?.leaky)
      ? " LEAKY: an arm sees the tokens that it predicts, which is no evidence." : "";
    place("difference").textContent = first.data !== second.data
      ? "The data are not the same: these losses do not compare."
      : mine === null || theirs === null ? "Without a final loss of both there is no difference."
      : `Final validation loss, B − A (the last arm of each): ${number(mine - theirs, 5)} ${unitsOf([first])}.`
        + leaky; };

  const showSettings = (pair) => {
    const configs = pair.map((run) => run.config);
    const unknown = configs.some((config) => Object.keys(config).length === 0) && runs.length > 1;
    const keys = [...new Set(configs.flatMap((config) => Object.keys(config)))].sort();
    const rows = keys.filter((key) => configs[0][key] !== configs[1][key])
      .map((key) => row("td", [key, ...configs.map((config) => config[key] ?? "—")]));
    place("settings").replaceChildren(...(rows.length ? [make("thead", {}, row("th", ["key", "A", "B"])),
      make("tbody", {}, ...rows)] : []));
    place("same").textContent = unknown && !rows.length ? "Their configurations are not known."
      : `Keys of the configuration that differ: ${rows.length || "none"}.`; };

  const show = () => {
    const pair = chosen.map((select) => runs[select.selectedIndex]);
    [showFinals, showDifference, showCurves, showSettings].forEach((part) => part(pair)); };
  chosen.forEach((select, index) => {
    select.append(...runs.map((run) => new Option(run.label)));
    const other = runs.findIndex((run, at) => at > 0 && run.data === runs[0].data);
    select.selectedIndex = index === 0 ? 0 : other > 0 ? other : runs.length - 1;
    select.addEventListener("change", show); });
  show();
})();
