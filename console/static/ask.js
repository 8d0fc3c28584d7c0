const ask = document.getElementById("ask");
// Writing a reason chooses it.
const other = ask.elements.other;
other?.addEventListener("input", () => {
  for (const radio of ask.querySelectorAll("input[name=reason]")) if (radio.value === "other") radio.checked = true;
});
// A form is sent once.
ask.addEventListener("submit", () => setTimeout(() => { for (const button of ask.querySelectorAll("button")) button.disabled = true; }));
addEventListener("pageshow", () => { for (const button of ask.querySelectorAll("button")) button.disabled = false; });
