// A time that is written is the time that is meant.
const form = document.getElementById("edit");
form.elements.expires_at.addEventListener("input", () => { form.elements.expiry.value = "custom"; });
