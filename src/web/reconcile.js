// Comparisons of sinks with their sources, down to one row, and what must hold between sources.

import { actions, act } from "./actions.js";
import { get, post } from "./api.js";
import { h } from "./dom.js";
import { ago, duration, number } from "./format.js";
import { state } from "./state.js";
import { left } from "./views.js";

// How many comparisons are shown, and how often one that was asked for is looked after.
const SHOWN = 10, AGAIN = 300;

const badge = (word, kind) => h("span", { class: `badge ${kind}` }, word);

const whatOf = (one) => [one.source, one.table, one.sink && `sink ${one.sink}`, one.where && `where ${one.where}`, one.sample,
  one.keys?.length ? `key ${one.keys.map((key) => key.join(", ")).join("; ")}` : null, one.repair ? "mending" : null].filter(Boolean).join(", ") || "everything";

export function compare() {
  const list = [...state.reconciles].reverse().slice(0, SHOWN);
  return h("section", { "aria-label": "Comparisons" },
    h("p", {},
      h("button", { type: "button", onclick: () => act("compare", () => asked({})) }, "Compare everything now"), " ",
      h("span", { class: "hint" }, "Reads the sources and reads back every sink, while the pipeline goes on.")),
    actions.get("compare")?.view(),
    list.length ? list.map(comparison) : h("p", { class: "card" }, "Nothing has been compared yet."));
}

// Waits for its end: how it goes on is in the list.
async function asked(request) {
  const { id } = await post("reconcile", { by: "web page", ...request });
  let found;
  do {
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
    found = (await get("reconcile")).find((one) => one.id === id);
  } while (found && !found.done);
  const sinks = (found?.reports ?? []).flatMap((report) => Object.values(report.sinks));
  const differ = sinks.reduce((sum, one) => sum + left(one), 0);
  const repaired = sinks.reduce((sum, one) => sum + one.repaired, 0);
  const problems = (found?.reports ?? []).map((report) => report.problem).concat(sinks.map((one) => one.problem)).filter(Boolean);
  const said = problems.length ? problems.join("; ")
    : `${number(sinks.reduce((sum, one) => sum + one.compared, 0))} compared: ${differ ? `${differ} differ` : "all equal"}${repaired ? `, ${repaired} mended` : ""}.`;
  return h("p", { class: `note ${problems.length ? "bad" : differ ? "" : "good"}`, role: "status" }, said);
}

function comparison(one) {
  const sinks = one.reports.flatMap((report) => Object.values(report.sinks));
  const differ = sinks.reduce((sum, sink) => sum + left(sink), 0);
  const failed = one.reports.some((report) => report.problem) || sinks.some((sink) => sink.problem);
  const word = !one.done ? ["running", ""] : differ ? [`${number(differ)} differ`, "bad"] : failed ? ["not to the end", "warn"] : ["equal", "good"];
  return h("article", { class: "card", "data-key": `comparison-${one.id}` },
    h("div", { class: "head" }, h("h2", {}, `No. ${one.id}: ${whatOf(one)}`), badge(...word),
      h("span", { class: "kind" }, one.by ? `asked for by ${one.by}` : "by itself", `, ${one.reports.length ? ago(one.reports[0].began_micros) : "waiting"}`)),
    !one.done && h("progress", { max: Math.max(1, one.tables), value: one.reports.filter((report) => report.ended_micros).length, "aria-label": "Tables that have been compared" }),
    one.reports.length ? h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Table", "Sink", "Compared", "Missing", "Different", "Stale", "Too many", "Aside", "Mended", ""].map((name, at) => h("th", { scope: "col", class: at > 1 && at < 9 ? "n" : null }, name)))),
      h("tbody", {}, one.reports.flatMap((report) => Object.entries(report.sinks).map(([sink, told]) => row(report, sink, told)))))) : null,
    one.reports.map((report) => report.problem && h("p", { class: "note bad" }, `${report.source}.${report.table}: ${report.problem}`)),
    one.reports.flatMap((report) => Object.entries(report.sinks).flatMap(([sink, told]) => told.drift.map((drift) => drifted(one, report, sink, drift)))));
}

function row(report, sink, told) {
  const took = report.ended_micros ? duration((report.ended_micros - report.began_micros) / 1e6) : "…";
  return h("tr", { "data-key": `${report.source} ${report.table} ${sink}` }, h("td", {}, `${report.source}: ${report.table}`), h("td", {}, sink),
    [told.compared, told.missing, told.different, told.stale, told.extra, told.aside, told.repaired].map((count) => h("td", { class: "n" }, number(count))),
    h("td", { class: "hint" }, told.unreadable ? "cannot be read by key" : told.problem ?? took));
}

const WORDS = { missing: "is not there", different: "is not as it should be", stale: "is from before the row's last change", extra: "should not be there" };

// One row: what the source has, what the sink holds, where it was compared, and what can be done.
function drifted(one, report, sink, drift) {
  const word = `drift-${one.id}-${report.source}-${report.table}-${sink}-${drift.held_as}`;
  const told = actions.get(word);
  const ask = (repair) => act(word, () => asked({ source: report.source, table: report.table, sink, keys: [drift.key], repair }));
  return h("details", { "data-key": word },
    h("summary", {}, h("span", { class: "mono" }, `${report.table} (${drift.key.join(", ")})`), ` in ${sink} ${WORDS[drift.drift] ?? drift.drift} `, drift.repaired ? badge("mended", "good") : badge(drift.drift, "bad")),
    h("dl", { class: "facts" },
      h("dt", {}, "Key in the sink"), h("dd", { class: "mono" }, drift.held_as),
      h("dt", {}, "Compared at"), h("dd", { class: "mono" }, drift.fence ?? "–"),
      drift.held && [h("dt", {}, "The sink's is of"), h("dd", { class: "mono" }, drift.held)],
      drift.changed_after && [h("dt", {}, "Changed behind"), h("dd", { class: "mono" }, drift.changed_after)],
      drift.columns?.length ? [h("dt", {}, "Columns that differ"), h("dd", { class: "mono" }, drift.columns.join(", "))] : null),
    h("div", { class: "sides" },
      h("div", {}, h("h3", {}, "What the source has"), h("pre", {}, drift.expected === undefined ? (drift.drift === "extra" ? "no such row" : "a row that the sink has not") : marked(drift.expected, drift.columns))),
      h("div", {}, h("h3", {}, `What ${sink} holds`), h("pre", {}, drift.actual === undefined ? "nothing" : marked(drift.actual, drift.columns)))),
    h("p", {}, h("button", { type: "button", class: "quiet", disabled: told?.busy, onclick: () => ask(false) }, "Compare this row again"), " ",
      h("button", { type: "button", disabled: told?.busy, onclick: () => ask(true) }, "Repair this row")),
    told && h("div", { "aria-live": "polite" }, told.view()));
}

// An object by its columns, those that differ marked.
function marked(text, columns) {
  let object;
  try { object = JSON.parse(text); } catch { return text; }
  if (object === null || typeof object !== "object" || Array.isArray(object)) return text;
  return Object.entries(object).map(([name, value]) => {
    const line = `${name}: ${JSON.stringify(value)}`;
    return [columns?.includes(name) ? h("mark", {}, line) : line, "\n"];
  });
}

export function invariants() {
  const known = state.invariants;
  if (!known?.declared.length) return null;
  const latest = new Map(known.latest.map((report) => [report.invariant, report]));
  return h("section", { "aria-label": "Invariants" },
    h("h2", {}, "What must hold between sources"),
    h("p", {}, h("button", { type: "button", class: "quiet", onclick: () => act("evaluate", async () => { await post("invariants", {}); return h("p", { class: "hint" }, "Asked for."); }) }, "Look now")),
    actions.get("evaluate")?.view(),
    known.declared.map((name) => invariant(name, latest.get(name))));
}

function invariant(name, report) {
  const word = !report ? ["not looked at yet", ""] : report.problem ? ["cannot be told", "warn"] : report.violated ? [`${number(report.violated)} keys violate it`, "bad"]
    : report.in_doubt || report.undecided ? ["open", "warn"] : ["holds", "good"];
  return h("article", { class: "card", "data-key": `invariant-${name}` },
    h("div", { class: "head" }, h("h2", {}, name), badge(...word), h("span", { class: "kind" }, report ? `${report.rule}, ${number(report.keys)} keys, ${ago(report.began_micros)}` : "")),
    report?.problem && h("p", { class: "note bad" }, report.problem),
    report?.broken.length ? h("pre", {}, report.broken.slice(0, 20).map((one) => `${JSON.stringify(one)}\n`)) : null);
}
