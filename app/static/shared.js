"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const SHAPES = ["svg", "g", "circle", "line", "path", "text"];
const pager = { page: 0, size: 100, unit: "pair" }; // of a list with the buttons #previous and #next and the words #page

// An element of HTML or SVG, with attributes or properties.
function make(tag, attributes = {}, ...children) {
  const svg = SHAPES.includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (!svg && name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function fill(select, options, chosen = 0) {
  select.replaceChildren(...options.map(([value, text], i) => new Option(text, value, false, i === chosen)));
}

// The part of a list that is on the page now.
function cut(list) {
  const last = Math.max(0, Math.ceil(list.length / pager.size) - 1);
  pager.page = Math.min(Math.max(pager.page, 0), last);
  find("previous").disabled = pager.page === 0;
  find("next").disabled = pager.page === last;
  find("page").textContent = list.length ? `Page ${pager.page + 1} of ${last + 1}` : `No ${pager.unit} fits`;
  return list.slice(pager.page * pager.size, (pager.page + 1) * pager.size);
}

function setUpPager(unit, size, turn) {
  Object.assign(pager, { unit, size });
  find("previous").addEventListener("click", () => turn(-1));
  find("next").addEventListener("click", () => turn(1));
}
