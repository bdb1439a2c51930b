"use strict";
// Without this the page is a report. With it, what is not marked to be kept can be shown, copied and saved as a list.
const tools = document.getElementById("tools");
const list = document.getElementById("list");
const status = document.getElementById("status");
const keys = document.getElementById("keys");
tools.hidden = false;

// A name with a line break would be two lines, and bytes that are no UTF-8 stand here with escapes, as "\\xff": such
// names are written as the file of -o has them, in JSON.
const isEscaped = (path) => /[\r\n]|\\x/.test(path);
const line = (path) => (isEscaped(path) ? JSON.stringify(path) : path);

function others() {
  const found = document.querySelectorAll("input[data-path]:not(:checked)");
  return [...found].map((one) => one.dataset.path).filter(Boolean);
}

function note(paths) {
  const count = paths.filter(isEscaped).length;
  return count ? ` ${count} of them, with line breaks or bytes that are no UTF-8, are written as JSON.` : "";
}

function tell(text) {
  status.textContent = text;
}

function show() {
  const paths = others();
  list.value = paths.map(line).join("\n");
  list.hidden = false;
  tell(`${paths.length} files are not marked to be kept.${note(paths)}`);
  return paths;
}

document.getElementById("show").addEventListener("click", () => {
  show();
  list.focus();
});
document.getElementById("copy").addEventListener("click", async () => {
  const paths = show();
  list.select();
  let copied = false;
  try {
    await navigator.clipboard.writeText(list.value);
    copied = true;
  } catch {
    copied = document.execCommand("copy");
  }
  const done = `${paths.length} names were copied.${note(paths)}`;
  tell(copied ? done : "They could not be copied: the list is shown and marked.");
});
document.getElementById("save").addEventListener("click", () => {
  const paths = others();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([paths.map((path) => `${line(path)}\n`).join("")], { type: "text/plain" }));
  link.download = "others.txt";
  link.click();
  URL.revokeObjectURL(link.href);
  tell(`${paths.length} names were saved as others.txt.${note(paths)}`);
});
document.addEventListener("change", (event) => {
  if (event.target.matches("input[data-path]") && !list.hidden) show();
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea") || event.ctrlKey || event.metaKey || event.altKey;
  if (!keys.checked || typing || !["j", "k"].includes(event.key)) return;
  const groups = [...document.querySelectorAll(".group")];
  const here = groups.indexOf(document.activeElement.closest(".group"));
  const next = groups[event.key === "j" ? here + 1 : Math.max(here - 1, 0)];
  if (!next) return;
  event.preventDefault();
  next.scrollIntoView({ block: "start" });
  next.querySelector("input:checked, input").focus({ preventScroll: true });
});
