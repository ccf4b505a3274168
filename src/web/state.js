// What is known of the pipeline, asked for again and again, and rates from one answer to the next.

import { get, Refused } from "./api.js";

const EVERY = 1000;
const KEPT = 60;

export const state = {
  status: null, file: null, reconciles: [], invariants: null, letters: null, lettersProblem: null, doubts: null, reloads: {},
  problem: null, locked: false, rates: new Map(),
};

// What views need beside the status; each is asked for only while somebody looks at it.
const EXTRAS = {
  reconcile: async () => { [state.reconciles, state.invariants] = await Promise.all([get("reconcile"), get("invariants")]); },
  letters: async () => {
    try { state.letters = (await get("dead-letters")).dead_letters; state.lettersProblem = null; }
    catch (refused) { if (refused.status !== 400) throw refused; state.lettersProblem = refused.message; }
  },
  transactions: async () => { state.doubts = await get("transactions"); },
  sources: async () => { state.reloads = await get("snapshot"); },
};

let before = null;

function measure(status) {
  const now = performance.now() / 1000;
  const counts = new Map();
  for (const [name, source] of Object.entries(status.sources)) counts.set(`sources.${name}`, source.changes);
  for (const [name, sink] of Object.entries(status.sinks)) counts.set(`sinks.${name}`, sink.written + sink.stale);
  // Another process counts from the start.
  if (before && status.uptime_seconds >= before.uptime) {
    for (const [name, count] of counts) {
      const last = before.counts.get(name) ?? count;
      const rates = state.rates.get(name) ?? [];
      rates.push(Math.max(0, (count - last) / (now - before.now)));
      state.rates.set(name, rates.slice(-KEPT));
    }
  }
  before = { now, counts, uptime: status.uptime_seconds };
}

// Of the last few seconds, so that numbers can be read.
export function rateOf(name) {
  const rates = (state.rates.get(name) ?? []).slice(-3);
  return rates.length ? rates.reduce((sum, rate) => sum + rate, 0) / rates.length : undefined;
}

export async function refresh(view) {
  try {
    const status = await get("status");
    if (!state.file || status.uptime_seconds < (state.status?.uptime_seconds ?? 0)) state.file = await get("file");
    measure(status);
    state.status = status;
    await EXTRAS[view]?.();
    state.problem = null;
    state.locked = false;
  } catch (error) {
    state.locked = error instanceof Refused && error.status === 401;
    state.problem = error instanceof Refused ? error.message : "the endpoint does not answer";
    if (!(error instanceof Refused)) state.status = null;
  }
}

export function follow(view, draw) {
  const turn = async () => {
    if (!document.hidden && !state.locked) {
      await refresh(view());
      draw();
    }
    setTimeout(turn, EVERY);
  };
  turn();
}
