const create = document.getElementById("create");
const day = create.elements.expires_on, choice = create.elements.expiry;
if (day) {
  const show = () => { day.hidden = choice.value !== "custom"; day.required = !day.hidden; };
  choice.addEventListener("change", show);
  show();
}
// A form is sent once: a second click would only show that the secret was shown.
create.addEventListener("submit", () => setTimeout(() => { create.querySelector("button.primary").disabled = true; }));
addEventListener("pageshow", () => { if (!document.getElementById("refused")) create.querySelector("button.primary").disabled = false; });
