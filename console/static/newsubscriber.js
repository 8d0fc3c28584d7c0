// Makes an nkey (NATS: base32 of a prefix, 32 bytes and CRC-16) in the browser, so
// that the seed is nowhere else. Browsers without Ed25519 show the form without it.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

function encode(prefix, bytes) {
  const raw = [...prefix, ...bytes];
  let crc = 0;
  for (const byte of raw) {
    crc ^= byte << 8;
    for (let i = 0; i < 8; i++) crc = crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1;
    crc &= 0xffff;
  }
  raw.push(crc & 0xff, crc >> 8);
  let text = "", bits = 0, value = 0;
  for (const byte of raw) {
    value = (value << 8) | byte;
    bits += 8;
    while (bits >= 5) {
      text += alphabet[(value >>> (bits - 5)) & 31];
      bits -= 5;
    }
    value &= (1 << bits) - 1;
  }
  return bits ? text + alphabet[(value << (5 - bits)) & 31] : text;
}

const user = 20 << 3, seedOf = 18 << 3;
const form = document.getElementById("subscriber");
const make = document.getElementById("make"), made = document.getElementById("made");
const kept = document.getElementById("kept");

async function makeKey() {
  const pair = await crypto.subtle.generateKey("Ed25519", true, ["sign", "verify"]);
  const open = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
  const secret = new Uint8Array(await crypto.subtle.exportKey("pkcs8", pair.privateKey)).slice(-32);
  form.elements.public_key.value = encode([user], open);
  document.getElementById("seed").textContent = encode([seedOf | (user >> 5), (user & 31) << 3], secret);
  made.hidden = false;
  kept.required = true;
  kept.focus();
}

if (globalThis.crypto?.subtle) {
  make.hidden = false;
  make.firstElementChild.addEventListener("click", () => makeKey().catch(() => { make.hidden = true; }));
  const ask = (event) => { if (!made.hidden && !kept.checked) event.preventDefault(); };
  addEventListener("beforeunload", ask);
}
