// Elements, and how those on the page become those that a view has just made: what is the same stays, with focus, selection,
// what was typed, and what was opened.

const SVG = "http://www.w3.org/2000/svg";

function element(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) (node.handlers ??= {})[name.slice(2)] = value;
    else set(node, name, value === true ? "" : value);
  }
  for (const type of Object.keys(node.handlers ?? {})) listen(node, type);
  node.append(...children.flat(9).filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

// The policy of the page forbids styles as attributes, and permits them as properties.
function set(node, name, value) {
  if (name === "style") node.style.cssText = value;
  else node.setAttribute(name, value);
}

// By way of the element, so that a later view can give it another one.
function listen(node, type) {
  node.addEventListener(type, (event) => node.handlers?.[type]?.(event));
}

export const h = (tag, attributes, ...children) => element(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => element(document.createElementNS(SVG, tag), attributes, children);

const key = (node) => node.getAttribute?.("data-key");
const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);

export function morph(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What a person has opened stays open.
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) set(old, name, value);
  }
  for (const type of Object.keys(fresh.handlers ?? {})) {
    if (!old.handlers?.[type]) {
      old.handlers ??= {};
      listen(old, type);
    }
  }
  old.handlers = fresh.handlers;
  children(old, fresh);
}

function children(old, fresh) {
  let at = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    let found = at;
    while (found && !alike(found, wanted)) found = key(wanted) ? found.nextSibling : null;
    if (!found) {
      old.insertBefore(wanted, at);
      continue;
    }
    while (at !== found) at = drop(at);
    morph(found, wanted);
    at = found.nextSibling;
  }
  while (at) at = drop(at);
}

function drop(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}
