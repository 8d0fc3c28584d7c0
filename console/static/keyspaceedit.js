// Line numbers, and what is wrong beside its line, while somebody types. Without
// this the form does the same when it is sent.
const form = document.getElementById("editing"), text = form.elements.document, frame = text.parentElement;
const checked = document.getElementById("checked"), said = document.getElementById("said");
const lineHeight = 20, top = 10;

const gutter = document.createElement("div"), numbers = document.createElement("div"), beside = document.createElement("div");
gutter.className = "gutter";
beside.className = "beside";
gutter.ariaHidden = beside.ariaHidden = "true";
gutter.append(numbers);
frame.prepend(gutter);
frame.append(beside);
let wrong = new Map(); // line: what is wrong there

const draw = () => {
  const lines = text.value.split("\n");
  numbers.replaceChildren(...lines.map((_, i) => {
    const n = document.createElement("span");
    n.textContent = i + 1;
    if (wrong.has(i + 1)) n.className = "bad";
    return n;
  }));
  gutter.style.width = `${String(lines.length).length + 3}ch`;
  beside.replaceChildren(...[...wrong].filter(([line]) => line <= lines.length).map(([line, what]) => {
    const s = document.createElement("span");
    s.textContent = what;
    s.dataset.line = line;
    return s;
  }));
  follow();
};

const follow = () => {
  numbers.style.transform = `translateY(${-text.scrollTop}px)`;
  const lines = text.value.split("\n"), character = measure();
  for (const s of beside.children) {
    const line = Number(s.dataset.line);
    s.style.top = `${top + (line - 1) * lineHeight - text.scrollTop}px`;
    s.style.left = `${gutter.offsetWidth + 12 + (lines[line - 1].length + 2) * character - text.scrollLeft}px`;
  }
};

// measure is the width of a character.
let width = 0;
const measure = () => {
  if (width) return width;
  const ruler = document.createElement("span");
  ruler.textContent = "0".repeat(100);
  ruler.style.visibility = "hidden";
  ruler.style.position = "absolute";
  ruler.style.font = getComputedStyle(text).font;
  frame.append(ruler);
  width = ruler.offsetWidth / 100;
  ruler.remove();
  return width;
};

const read = () => {
  wrong = new Map();
  for (const li of checked.querySelectorAll("li[data-line]")) {
    const line = Number(li.dataset.line);
    if (!wrong.has(line)) wrong.set(line, li.dataset.text);
  }
  draw();
};

let waiting = 0, asked = null;
const check = async () => {
  asked?.abort();
  asked = new AbortController();
  const mine = asked;
  try {
    const response = await fetch("/keyspaces/check", {
      method: "POST", signal: mine.signal, body: new URLSearchParams({ document: text.value, keyspace: form.dataset.keyspace }),
    });
    if (!response.ok || response.redirected) throw new Error("no answer");
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    checked.replaceChildren(...page.body.childNodes);
    read();
    const n = checked.querySelectorAll(".problems li").length;
    said.textContent = n === 0 ? "It is valid." : n === 1 ? "1 problem." : `${n} problems.`;
    form.dataset.checked = Number(form.dataset.checked || 0) + 1;
  } catch (e) {
    if (e.name !== "AbortError") said.textContent = "It could not be checked just now. It is checked again when you preview it.";
  }
};

text.addEventListener("input", () => {
  draw();
  clearTimeout(waiting);
  waiting = setTimeout(check, 400);
});
text.addEventListener("scroll", follow);
checked.addEventListener("click", (event) => {
  const to = event.target.closest?.("[data-to]");
  if (!to) return;
  event.preventDefault();
  const lines = text.value.split("\n"), line = Number(to.dataset.to);
  const from = lines.slice(0, line - 1).reduce((n, s) => n + s.length + 1, 0);
  text.focus();
  text.setSelectionRange(from, from + (lines[line - 1] ?? "").length);
  text.scrollTop = Math.max(0, (line - 5) * lineHeight);
});

// What was written is not lost by a stray click.
const begun = text.value;
let leaving = false;
form.addEventListener("submit", () => { leaving = true; });
addEventListener("beforeunload", (event) => { if (!leaving && text.value !== begun) event.preventDefault(); });

read();
if (checked.childElementCount === 0) check();
