// The link carries its code behind the #, which is sent to nobody. The page takes it out
// of the address, so that it stays in no history, and waits for a click: programs that
// look at links run scripts too, and press nothing.
const form = document.getElementById("claim");
const take = () => {
  if (!location.hash.startsWith("#claim_")) return;
  form.code.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  form.classList.add("ready");
  form.querySelector("button").focus();
};
take();
addEventListener("hashchange", take);
