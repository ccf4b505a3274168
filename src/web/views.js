// What is shown under each address, from what is known: each view makes its elements anew, `morph` puts them on the page.

import { post } from "./api.js";
import { h } from "./dom.js";
import { ago, bytes, clock, duration, lsn, number, rate } from "./format.js";
import { graph, health } from "./graph.js";
import { actions, act } from "./actions.js";
import { compare, invariants } from "./reconcile.js";
import { rateOf, state } from "./state.js";

const fact = (name, value) => value === undefined || value === null || value === "" ? null : [h("dt", {}, name), h("dd", {}, value)];
const badge = (word, kind) => h("span", { class: `badge ${kind}` }, word);
const total = (kind, count) => Object.values(kind).reduce((sum, one) => sum + count(one), 0);
const rateOfAll = (kind) => Object.keys(state.status[kind]).map((name) => rateOf(`${kind}.${name}`)).reduce((sum, one) => sum + (one ?? 0), 0);

function tile(name, value, sub) {
  return h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, value, h("span", { class: "sub" }, sub)));
}

function pipeline() {
  const { status, file } = state;
  const worst = Object.entries(status.sinks).sort(([, a], [, b]) => b.lag_seconds - a.lag_seconds)[0];
  const width = Math.min(1204, document.getElementById("main").clientWidth - 36);
  return [
    h("h1", {}, "Pipeline ", status.pipeline),
    h("dl", { class: "tiles" },
      tile("Changes in", rate(rateOfAll("sources")), `${number(total(status.sources, (one) => one.changes))} since the start`),
      tile("Records out", rate(rateOfAll("sinks")), `${number(total(status.sinks, (one) => one.written))} since the start`),
      tile("Furthest behind", worst ? duration(worst[1].lag_seconds) : "–", worst ? `sink ${worst[0]}` : ""),
      tile("Dead letters", number(total(status.sinks, (one) => one.dead_letters)), "that lie aside now"),
      tile("Memory of batches", bytes(status.memory.used), `of ${bytes(status.memory.total)}`)),
    h("section", { class: "card", "aria-label": "Graph" }, h("div", { class: "scroll" }, graph(file, status, width))),
    visible(),
  ];
}

function visible() {
  const told = actions.get("visible");
  return h("section", { class: "card", "aria-label": "Visibility" },
    h("h2", {}, "Is it there yet?"),
    h("p", { class: "hint" }, "A place of a source's log, as ", h("code", {}, "pg_current_wal_insert_lsn()"), " gives it behind a commit: in which sinks is everything up to there durable?"),
    h("form", { class: "row", onsubmit: (event) => {
        event.preventDefault();
        const { source, place } = Object.fromEntries(new FormData(event.target));
        act("visible", async () => {
          const answer = await import("./api.js").then(({ get }) => get(`visible?source=${encodeURIComponent(source)}&lsn=${encodeURIComponent(place)}`));
          return h("div", {}, h("p", { class: `note ${answer.visible ? "good" : ""}` },
            answer.visible ? `Everything up to ${answer.lsn} of ${answer.source} is durable in every sink.` : `Not everything up to ${answer.lsn} of ${answer.source} is durable yet.`),
            h("ul", {}, Object.entries(answer.sinks).map(([sink, there]) => h("li", {}, sink, ": ", badge(there ? "visible" : "not yet", there ? "good" : "warn")))));
        });
      } },
      h("label", {}, "Source", h("select", { name: "source" }, Object.keys(state.status.sources).map((name) => h("option", {}, name)))),
      h("label", {}, "Place of the log", h("input", { name: "place", class: "mono", placeholder: "16/B374D848", required: true, pattern: "[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", autocomplete: "off" })),
      h("button", { type: "submit" }, "Look")),
    told && h("div", { "aria-live": "polite" }, told.view()));
}

function source(name, report) {
  const kind = health({ kind: "sources", report });
  return h("article", { class: "card", "data-key": name },
    h("div", { class: "head" }, h("h2", {}, name), badge(report.phase, kind), h("span", { class: "kind" }, state.file.sources[name]?.type)),
    h("dl", { class: "facts" },
      fact("Database", report.identity?.split("/").pop()),
      fact("Changes", `${number(report.changes)} in ${number(report.transactions)} transactions, ${rate(rateOf(`sources.${name}`))}`),
      fact("Received up to", h("span", { class: "mono" }, lsn(report.received))),
      fact("Confirmed up to", h("span", { class: "mono" }, lsn(report.confirmed))),
      fact("End of the log", h("span", { class: "mono" }, lsn(report.server))),
      fact("Not confirmed", bytes(report.lag_bytes)),
      fact("Kept by the slot", bytes(report.retained_bytes)),
      fact("Until it is given up", report.safe_bytes === null ? null : bytes(report.safe_bytes)),
      fact("In progress", report.in_progress ? `${report.in_progress} transactions, ${bytes(report.in_progress_bytes)}` : null),
      fact("In doubt", report.in_doubt ? `${report.in_doubt}, the oldest from ${ago(report.in_doubt_since_ms * 1000)}` : null)),
    report.problem && h("p", { class: "note bad" }, report.problem),
    report.warning && h("p", { class: "note" }, report.warning),
    (report.notices ?? []).map((notice) => h("p", { class: `note ${notice.gap ? "bad" : ""}` }, h("strong", {}, notice.subject), ` ${notice.what}. `, h("em", {}, notice.remedy))),
    report.snapshot?.length ? h("div", {}, h("h3", {}, "Initial copy"), report.snapshot.map(copied)) : null,
    reloads(name));
}

function copied(table) {
  const whole = Math.max(table.estimated_rows, table.rows, 1);
  return h("div", { "data-key": table.table },
    h("div", {}, table.table, " ", h("span", { class: "kind" }, table.done ? `${number(table.rows)} rows, done` : `${number(table.rows)} of about ${number(table.estimated_rows)} rows`)),
    h("progress", { max: table.done ? 1 : whole, value: table.done ? 1 : table.rows, "aria-label": `Copy of ${table.table}` }));
}

function reloads(name) {
  const asked = state.reloads?.[name] ?? [];
  const word = `reload-${name}`;
  return h("details", {},
    h("summary", {}, "Tables that are loaded again", asked.length ? ` (${asked.length})` : ""),
    asked.length ? h("ul", {}, asked.map((one) => h("li", {}, `${one.table}${one.where ? ` where ${one.where}` : ""}: ${one.state}, ${number(one.rows)} rows`, one.problem ? ` – ${one.problem}` : ""))) : null,
    h("form", { class: "row", onsubmit: (event) => {
        event.preventDefault();
        const form = Object.fromEntries(new FormData(event.target));
        act(word, async () => {
          const { id } = await post("snapshot", { source: name, table: form.table, ...(form.where ? { where: form.where } : {}) });
          return h("p", { class: "note good" }, `Asked for as number ${id}.`);
        });
      } },
      h("label", {}, "Table", h("input", { name: "table", placeholder: "public.orders", required: true })),
      h("label", {}, "Rows that meet (optional)", h("input", { name: "where", placeholder: "id > 100", class: "mono" })),
      h("button", { type: "submit", class: "quiet" }, "Load again")),
    actions.get(word)?.view());
}

const sources = () => [h("h1", {}, "Sources"), h("div", { class: "cards" }, Object.entries(state.status.sources).map(([name, report]) => source(name, report)))];

function sink(name, report) {
  return h("article", { class: "card", "data-key": name },
    h("div", { class: "head" }, h("h2", {}, name), badge(report.state, health({ kind: "sinks", report })), h("span", { class: "kind" }, state.file.sinks[name]?.type)),
    h("dl", { class: "facts" },
      fact("Written", `${number(report.written)} records, ${rate(rateOf(`sinks.${name}`))}`),
      fact("Behind", duration(report.lag_seconds)),
      fact("On their way", `${report.in_flight} batches`),
      fact("Held the same or newer", number(report.stale)),
      fact("Incomplete rows", report.incomplete ? number(report.incomplete) : null),
      fact("Failed and opened again", report.errors ? number(report.errors) : null),
      fact("Dead letters", report.dead_letters ? h("a", { href: "#/letters" }, number(report.dead_letters)) : null),
      Object.entries(report.durable).map(([of, place]) => fact(`Durable of ${of}`, h("span", { class: "mono" }, place)))),
    report.problem && h("p", { class: "note bad" }, report.problem));
}

const sinks = () => [h("h1", {}, "Sinks"), h("div", { class: "cards" }, Object.entries(state.status.sinks).map(([name, report]) => sink(name, report)))];

function letter(head) {
  const word = `letter-${head.id}`;
  const told = actions.get(word);
  const send = (what, say) => act(word, async () => h("p", { class: "note good" }, say(await post(`dead-letters/${what}`, { ids: [head.id] }))));
  return h("article", { class: "card", "data-key": word },
    h("div", { class: "head" }, h("h2", {}, `${head.table} `, h("span", { class: "mono" }, head.keys.join(" → "))), badge(head.reason, "bad"), h("span", { class: "kind" }, `${head.op}, ${head.place}`)),
    h("p", {}, head.message),
    h("dl", { class: "facts" }, fact("Number", head.id), fact("Place", h("span", { class: "mono" }, head.position)), fact("Committed", clock(head.commit_micros)),
      fact("Put aside", ago(head.kept_micros)), fact("Tried", `${head.attempts} times, last ${ago(head.tried_micros)}`), fact("Overtaken by", head.overtaken)),
    h("details", { ontoggle: (event) => event.target.open && act(`${word}-body`, async () => {
        const { get } = await import("./api.js");
        return h("pre", {}, JSON.stringify(await get(`dead-letters/${head.id}`), null, 2));
      }) },
      h("summary", {}, "The change"), actions.get(`${word}-body`)?.view()),
    h("p", {}, h("button", { type: "button", disabled: told?.busy, onclick: () => send("replay", (answer) => replayed(answer)) }, "Replay"), " ",
      h("button", { type: "button", class: "danger", disabled: told?.busy, onclick: () => confirm(`Discard dead letter ${head.id}? The row stays as the sink has it.`) && send("discard", (answer) => `${answer.discarded} discarded.`) }, "Discard")),
    told?.view());
}

const replayed = (answer) => `Replayed: ${JSON.stringify(answer)}`;

function letters() {
  const list = state.letters ?? [];
  const told = [...actions].filter(([word]) => /^letter-\d+$/.test(word) && !list.some((head) => `letter-${head.id}` === word));
  return [h("h1", {}, "Dead letters"),
    state.lettersProblem && h("p", { class: "note" }, state.lettersProblem),
    told.map(([word, one]) => h("div", { "data-key": `gone-${word}`, "aria-live": "polite" }, one.view())),
    !state.lettersProblem && !list.length && h("p", { class: "card" }, "Nothing lies aside."),
    list.length > 1 && h("p", {}, h("button", { type: "button", class: "quiet", onclick: () => act("letters", async () => h("p", { class: "note good" }, replayed(await post("dead-letters/replay", { all: true })))) }, "Replay all")),
    actions.get("letters")?.view(),
    list.map(letter)];
}

function transactions() {
  const doubts = state.doubts?.branches ?? [];
  return [h("h1", {}, "Transactions in doubt"),
    h("p", { class: "hint" }, "Branches of two-phase commits that are prepared and have not ended, as far as ", h("code", {}, "stitch"), " has read. ",
      h("code", {}, "lockstep transactions resolve"), " says what is to become of them."),
    doubts.length ? h("div", { class: "card scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Source", "Name", "Prepared", "Committed elsewhere", "Rolled back elsewhere"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, doubts.map((one) => h("tr", { "data-key": `${one.source} ${one.gid}` }, h("td", {}, one.source), h("td", { class: "mono" }, one.gid), h("td", {}, ago(one.prepared_micros)),
        h("td", {}, one.committed.join(", ") || "–"), h("td", {}, one.rolled_back.join(", ") || "–"))))))
      : h("p", { class: "card" }, "Nothing is in doubt.")];
}

function branch(value) {
  if (value === null || typeof value !== "object") return h("span", { class: "mono" }, JSON.stringify(value));
  if (Array.isArray(value) && value.every((one) => typeof one !== "object")) return h("span", { class: "mono" }, JSON.stringify(value));
  return h("dl", { class: "facts" }, Object.entries(value).map(([name, inner]) => [h("dt", { class: "mono" }, name), h("dd", {}, branch(inner))]));
}

const file = () => [h("h1", {}, "Pipeline file"),
  h("p", { class: "hint" }, "As it is carried out, with what the environment has changed. Secrets are not shown; ", h("code", {}, "${NAME}"), " says where one comes from."),
  Object.entries(state.file).map(([name, value]) => h("section", { class: "card", "data-key": name, "aria-label": name }, h("h2", { class: "mono" }, name), branch(value)))];

const reconcile = () => [h("h1", {}, "Reconcile"), compare(), invariants()];

export const VIEWS = {
  "": { name: "Pipeline", show: pipeline },
  sources: { name: "Sources", show: sources },
  sinks: { name: "Sinks", show: sinks },
  reconcile: { name: "Reconcile", show: reconcile, count: () => drifted() },
  letters: { name: "Dead letters", show: letters, count: () => total(state.status.sinks, (one) => one.dead_letters) },
  transactions: { name: "In doubt", show: transactions, count: () => total(state.status.sources, (one) => one.in_doubt ?? 0) },
  file: { name: "File", show: file },
};

function drifted() {
  const last = state.reconciles.at(-1);
  return (last?.reports ?? []).flatMap((report) => Object.values(report.sinks)).reduce((sum, one) => sum + left(one), 0);
}

export const left = (one) => Math.max(0, one.missing + one.different + one.stale + one.extra - one.repaired);
