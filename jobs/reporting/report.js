"use strict";
// The gallery's controls. Without this script the page shows every entry, the most doubtful first.

const PAGE = 24; // entries shown at first, and more at each request

const list = document.getElementById("entries");
if (list) {
  const find = (id) => document.getElementById(id);
  const all = [...list.children];
  const controls = { class: find("class-filter"), split: find("split-filter"), order: find("order") };
  const dialog = find("detail");
  const others = [...document.querySelectorAll("#lead .entry, #examples .entry")];
  let chosen = all; // the entries that pass the filters, in order
  let limit = PAGE;
  let leafed = chosen; // the entries between which the dialog changes
  let open = 0; // index in `leafed` of the enlarged entry

  const number = (entry, key) => (entry.dataset[key] === "" ? null : Number(entry.dataset[key]));

  function compare(key, sign) {
    return (a, b) => {
      const [left, right] = [number(a, key), number(b, key)];
      if (left === null || right === null) return (left === null) - (right === null); // unknown values last
      return sign * (left - right) || a.dataset.row - b.dataset.row || a.dataset.class - b.dataset.class;
    };
  }

  function passes(entry) {
    const isSplit = !controls.split?.value || "=" + entry.dataset.split === controls.split.value;
    return isSplit && (!controls.class.value || entry.dataset.class === controls.class.value);
  }

  function show() {
    const visible = new Set(chosen.slice(0, limit));
    for (const entry of all) entry.hidden = !visible.has(entry);
    const left = chosen.length - visible.size;
    find("count").textContent = `${visible.size} of ${chosen.length} shown`;
    find("more").hidden = left === 0;
    find("more").textContent = `Show ${Math.min(left, PAGE)} more of ${left}`;
  }

  function arrange() {
    const [key, direction] = controls.order.value.split(" ");
    chosen = all.filter(passes).sort(compare(key, direction === "asc" ? 1 : -1));
    list.append(...chosen);
    limit = PAGE;
    show();
  }

  function enlarge(place, entries = leafed) {
    leafed = entries;
    open = Math.max(0, Math.min(place, leafed.length - 1));
    const copy = leafed[open].cloneNode(true);
    copy.hidden = false;
    copy.querySelector(".enlarge")?.remove();
    for (const tile of copy.querySelectorAll(".tile")) explain(tile);
    find("detail-body").replaceChildren(copy);
    find("previous").disabled = open === 0;
    find("next").disabled = open === leafed.length - 1;
    if (!dialog.open) dialog.showModal();
  }

  function explain(tile) {
    const words = [...find("tile-words").querySelectorAll("dd")].find((each) => tile.classList.contains(each.dataset.kind));
    if (!words) return;
    const paragraph = document.createElement("p");
    paragraph.className = "quiet";
    paragraph.textContent = words.textContent;
    tile.querySelector("figcaption").append(paragraph);
  }

  for (const control of Object.values(controls)) control?.addEventListener("change", arrange);
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("strength").addEventListener("input", (event) => {
    document.documentElement.style.setProperty("--strength", event.target.value / 100);
  });
  find("more").addEventListener("click", () => {
    const first = chosen[limit];
    limit += PAGE;
    show();
    first.querySelector(".enlarge").focus({ preventScroll: true }); // the button has moved, or is gone
  });
  list.addEventListener("click", (event) => {
    if (event.target.closest(".enlarge, .strip")) enlarge(chosen.indexOf(event.target.closest(".entry")), chosen);
  });
  for (const entry of others) {
    const siblings = [...entry.parentElement.children];
    entry.querySelector(".strip").addEventListener("click", () => enlarge(siblings.indexOf(entry), siblings));
  }
  for (const button of document.querySelectorAll("[data-show-class]")) {
    button.addEventListener("click", () => {
      controls.class.value = button.dataset.showClass;
      arrange();
      find("gallery").scrollIntoView();
      controls.class.focus({ preventScroll: true });
    });
  }

  find("previous").addEventListener("click", () => enlarge(open - 1));
  find("next").addEventListener("click", () => enlarge(open + 1));
  find("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") enlarge(open - 1);
    if (event.key === "ArrowRight") enlarge(open + 1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });

  document.documentElement.classList.add("js");
  find("controls").hidden = false;
  for (const button of list.querySelectorAll(".enlarge")) button.hidden = false;
  arrange(); // a reloaded page keeps its controls' values
}
