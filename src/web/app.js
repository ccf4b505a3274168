// The frame: which view, how the pipeline is, who may look.

import { onChange } from "./actions.js";
import { token } from "./api.js";
import { h, morph } from "./dom.js";
import { duration } from "./format.js";
import { follow, refresh, state } from "./state.js";
import { VIEWS } from "./views.js";

const at = (id) => document.getElementById(id);
const view = () => Object.hasOwn(VIEWS, location.hash.slice(2)) ? location.hash.slice(2) : "";

function draw() {
  const { status, problem } = state;
  document.title = status ? `${status.pipeline} · ${VIEWS[view()].name} · lockstep` : "lockstep";
  at("pipeline").textContent = status?.pipeline ?? "lockstep";
  const [word, kind] = problem ? ["no answer", "bad"] : !status ? ["connecting", ""] : status.ready ? ["ready", "good"] : ["not ready", "warn"];
  if (at("health").textContent !== word) at("health").textContent = word;
  at("health").className = `badge ${kind}`;
  put("troubles", trouble(problem ? [problem] : status?.problems ?? []));
  put("views", Object.entries(VIEWS).map(([path, { name, count }]) => {
    const number = status && count?.();
    return h("a", { href: `#/${path}`, "data-key": path || "pipeline", "aria-current": path === view() ? "page" : null }, name,
      number ? h("span", { class: "count" }, number) : null);
  }));
  if (status && state.file) put("main", VIEWS[view()].show());
  put("foot", status ? [`lockstep ${status.version}, up for ${duration(status.uptime_seconds)}`] : []);
  login();
}

const trouble = (problems) => problems.length ? [h("ul", {}, problems.map((problem) => h("li", {}, problem)))] : [];

function put(id, children) {
  const fresh = at(id).cloneNode(false);
  fresh.append(...children.flat(9).filter((child) => child instanceof Node || typeof child === "string"));
  morph(at(id), fresh);
}

function login() {
  const dialog = at("login");
  if (state.locked && !dialog.open) {
    at("login-why").textContent = token.get() ? "That is not the token." : "";
    token.forget();
    dialog.showModal();
  }
}

at("login").addEventListener("cancel", (event) => event.preventDefault());
at("login").querySelector("form").addEventListener("submit", async () => {
  token.set(at("token").value);
  at("token").value = "";
  await refresh(view());
  draw();
});

const THEME = "lockstep-theme";
function dress(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}
at("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  localStorage.setItem(THEME, dark ? "light" : "dark");
  dress(localStorage.getItem(THEME));
});
dress(localStorage.getItem(THEME));

addEventListener("hashchange", async () => {
  draw();
  at("main").focus({ preventScroll: true });
  scrollTo(0, 0);
  await refresh(view());
  draw();
});
addEventListener("resize", draw);
onChange(draw);
follow(view, draw);
