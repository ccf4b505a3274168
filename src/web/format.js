// Numbers, sizes and times as people read them.

export const number = (value) => value === undefined || value === null ? "–" : Number(value).toLocaleString("en");

export function bytes(value) {
  if (value === undefined || value === null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) { value /= 1000; at += 1; }
  return `${at && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
}

export function rate(value) {
  if (value === undefined || !Number.isFinite(value)) return "–";
  return `${value < 10 && value > 0 ? value.toFixed(1) : Math.round(value).toLocaleString("en")}/s`;
}

export function duration(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  if (seconds < 0.001) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60 % 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600 % 24)} h`;
}

export const ago = (micros) => micros ? `${duration(Math.max(0, Date.now() / 1000 - micros / 1e6))} ago` : "–";
export const clock = (micros) => micros ? new Date(micros / 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC" : "–";

// A number of the log, which is 64 bits: JSON gives what a double holds of it, and a log of 9 PB is far away.
export const lsn = (value) => value ? `${Math.floor(value / 2 ** 32).toString(16).toUpperCase()}/${(value % 2 ** 32).toString(16).toUpperCase()}` : "–";
