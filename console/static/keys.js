// What is chosen is counted, and a button that would do nothing cannot be pressed.
const boxes = [...document.querySelectorAll('input[form="bulk"]')], button = document.getElementById("revoke-chosen");
if (button && boxes.length) {
  const said = document.getElementById("chosen");
  const count = () => {
    const n = boxes.filter((box) => box.checked).length;
    button.disabled = n === 0;
    said.textContent = n === 0 ? "" : n === 1 ? "1 key chosen" : n + " keys chosen";
  };
  for (const box of boxes) box.addEventListener("change", count);
  addEventListener("pageshow", count);
  count();
}
