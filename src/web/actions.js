// What a person has asked for, by a word of its own, and what came of it.

import { h } from "./dom.js";

export const actions = new Map();
let changed = () => {};
export const onChange = (draw) => { changed = draw; };

// A view is made whenever the page is drawn: what is shown of it is made once, and copied.
export async function act(word, work) {
  const action = { busy: true, view: () => h("p", { class: "hint", role: "status" }, "…") };
  actions.set(word, action);
  changed();
  try {
    const shown = await work();
    action.view = () => shown.cloneNode(true);
  } catch (error) {
    action.view = () => h("p", { class: "note bad", role: "alert" }, error.message);
  }
  action.busy = false;
  changed();
}
