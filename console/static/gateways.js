// The answer to a tried request takes its place on the page, so that the secret
// stays in its field for the next one and is in no page.
const form = document.getElementById("trying"), tried = document.getElementById("tried");
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button.primary");
  button.disabled = true;
  try {
    const response = await fetch(form.action, { method: "POST", headers: { "X-Part": "tried" }, body: new URLSearchParams(new FormData(form)) });
    if (response.redirected) throw new Error("signed out");
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (page.querySelector("main")) throw new Error("a whole page");
    tried.replaceChildren(...page.body.childNodes);
  } catch {
    tried.textContent = "It could not be sent just now. Reload the page, and send it again.";
  }
  button.disabled = false;
});
