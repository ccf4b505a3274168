// The pipeline as a picture: sources, transforms and sinks, what flows between them, and where it piles up.

import { s } from "./dom.js";
import { bytes, duration, rate } from "./format.js";
import { rateOf, state } from "./state.js";

const WIDTH = 224, HEIGHT = 84, GAP = 26;
// A sink that is this far behind, and one that is far too far.
const LATE = 5, TOO_LATE = 60;

function nodes(file, status) {
  const all = new Map();
  for (const kind of ["sources", "transforms", "sinks"]) {
    for (const [name, section] of Object.entries(file[kind] ?? {})) {
      const inputs = (section.inputs ?? []).map((input) => {
        const at = input.indexOf(":");
        return at < 0 ? { from: input, part: null } : { from: input.slice(0, at), part: input.slice(at + 1) };
      });
      all.set(name, { kind, name, type: section.type, inputs, report: status[kind]?.[name] ?? {} });
    }
  }
  const depth = (node) => node.depth ??= node.kind === "sources" ? 0
    : 1 + Math.max(0, ...node.inputs.map(({ from }) => all.get(from)).filter(Boolean).map(depth));
  all.forEach(depth);
  const last = Math.max(...[...all.values()].map((node) => node.depth));
  for (const node of all.values()) if (node.kind === "sinks") node.depth = last;
  return all;
}

export function health({ kind, report }) {
  if (kind === "sources") {
    if (report.problem || report.phase === "waiting" || report.phase === "stopped") return "bad";
    return report.warning || report.notices?.length || report.phase !== "streaming" ? "warn" : "good";
  }
  if (kind === "transforms") return report.problem ? "bad" : "good";
  if (report.state !== "running" || report.lag_seconds > TOO_LATE) return "bad";
  return report.lag_seconds > LATE || report.dead_letters ? "warn" : "good";
}

function lines({ kind, name, report }) {
  if (kind === "sources") {
    const copying = (report.snapshot ?? []).filter((table) => !table.done);
    const what = report.phase === "snapshot" && copying.length ? `copying ${copying[0].table}` : report.phase;
    return [`${rate(rateOf(`sources.${name}`))} changes`, `${what ?? "–"}, ${bytes(report.lag_bytes)} not confirmed`];
  }
  if (kind === "transforms") {
    const size = report.size ? `${Object.values(report.size).find((value) => typeof value === "number") ?? 0} kept` : "";
    return [report.problem ?? `${report.duplicates ?? 0} repeats`, size];
  }
  const letters = report.dead_letters ? `, ${report.dead_letters} dead letters` : "";
  return [`${rate(rateOf(`sinks.${name}`))} records`, `${duration(report.lag_seconds)} behind, ${report.in_flight ?? 0} waiting${letters}`];
}

const cut = (text, length) => text.length > length ? `${text.slice(0, length - 1)}…` : text;

function spark(name, x, y) {
  const rates = state.rates.get(name) ?? [];
  if (rates.length < 2) return null;
  const most = Math.max(1, ...rates);
  const points = rates.map((value, at) => `${x + at * 56 / 59},${y - 20 * value / most}`);
  return s("polyline", { class: "spark", points: points.join(" ") });
}

function box(node, { x, y }) {
  const [first, second] = lines(node);
  const id = `${node.kind}.${node.name}`;
  return s("a", { href: `#/${node.kind === "transforms" ? "file" : node.kind}`, "data-key": id, class: health(node),
      "aria-label": `${node.kind.slice(0, -1)} ${node.name}, ${node.type}: ${first}, ${second}` },
    s("title", {}, node.report.problem ?? `${node.name} (${node.type})`),
    s("rect", { class: "box", x, y, width: WIDTH, height: HEIGHT, rx: 12 }),
    s("circle", { class: "dot", cx: x + 17, cy: y + 21, r: 5 }),
    s("text", { class: "name", x: x + 29, y: y + 26 }, cut(node.name, 14)),
    s("text", { class: "soft", x: x + 16, y: y + 46 }, cut(first, 24)),
    s("text", { class: "soft", x: x + 16, y: y + 65 }, cut(second, 34)),
    s("text", { class: "soft", x: x + WIDTH - 12, y: y + 26, "text-anchor": "end" }, node.type),
    spark(id, x + WIDTH - 70, y + 52));
}

// What is known of an edge: into a sink what it writes, out of a source what comes.
function flowOf(from, to) {
  if (to.kind === "sinks") return rateOf(`sinks.${to.name}`);
  return from.kind === "sources" ? rateOf(`sources.${from.name}`) : undefined;
}

function edge(from, to, part, a, b, upright) {
  const path = upright
    ? `M${a.x + WIDTH / 2},${a.y + HEIGHT} C${a.x + WIDTH / 2},${a.y + HEIGHT + 40} ${b.x + WIDTH / 2},${b.y - 40} ${b.x + WIDTH / 2},${b.y}`
    : `M${a.x + WIDTH},${a.y + HEIGHT / 2} C${a.x + WIDTH + 60},${a.y + HEIGHT / 2} ${b.x - 60},${b.y + HEIGHT / 2} ${b.x},${b.y + HEIGHT / 2}`;
  const flow = flowOf(from, to);
  const pressure = to.kind === "sinks" && to.report.in_flight > 0 && health(to) !== "good" ? health(to) : "";
  const middle = upright
    ? { x: (a.x + b.x + WIDTH) / 2, y: (a.y + HEIGHT + b.y) / 2 + 4 }
    : { x: (a.x + WIDTH + b.x) / 2, y: (a.y + b.y + HEIGHT) / 2 - 6 };
  return s("g", { "data-key": `${from.name}>${to.name}` },
    s("title", {}, `${from.name} to ${to.name}${part ? `: ${part}` : ""}`),
    s("path", { class: "edge", d: path }),
    flow > 0 ? s("path", { class: `flow ${pressure}`, d: path, "stroke-width": Math.min(7, 2 + Math.log10(1 + flow)).toFixed(1),
      style: `--pace:${Math.max(0.25, 1.6 - Math.log10(1 + flow) * 0.35).toFixed(2)}s` }) : null,
    s("text", { class: "rate", "text-anchor": "middle", ...middle }, flow === undefined ? "" : rate(flow)));
}

export function graph(file, status, width) {
  const all = nodes(file, status);
  const columns = [];
  for (const node of all.values()) (columns[node.depth] ??= []).push(node);
  const upright = width < 720;
  const most = Math.max(...columns.map((column) => column.length));
  const across = upright ? Math.min(most, 2) : columns.length;
  const step = upright ? WIDTH + 18 : Math.max(WIDTH + 110, (Math.max(width, 720) - 8 - WIDTH) / Math.max(1, columns.length - 1));
  const places = new Map();
  let bottom = 0;
  if (upright) {
    let y = 4;
    for (const column of columns) {
      column.forEach((node, at) => places.set(node.name, { x: 4 + (at % across) * step, y: y + Math.floor(at / across) * (HEIGHT + GAP) }));
      y += Math.ceil(column.length / across) * (HEIGHT + GAP) + 36;
    }
    bottom = y - 50;
  } else {
    bottom = most * (HEIGHT + GAP) + 8 - GAP;
    columns.forEach((column, depth) => {
      const top = 4 + (bottom - 8 - column.length * (HEIGHT + GAP) + GAP) / 2;
      column.forEach((node, at) => places.set(node.name, { x: 4 + depth * step, y: top + at * (HEIGHT + GAP) }));
    });
  }
  const right = upright ? 8 + across * step - 18 : 8 + (columns.length - 1) * step + WIDTH;
  const edges = [...all.values()].flatMap((to) => to.inputs.filter(({ from }) => all.has(from))
    .map(({ from, part }) => edge(all.get(from), to, part, places.get(from), places.get(to.name), upright)));
  return s("svg", { class: "graph", viewBox: `0 0 ${right} ${bottom}`, role: "group", "aria-label": "The pipeline",
      style: `max-width:${Math.round(right * 1.15)}px` },
    edges, [...all.values()].map((node) => box(node, places.get(node.name))));
}
