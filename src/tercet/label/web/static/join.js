// The token stays in the address's fragment until a person presses Start: nothing that only looks
// at the link uses it up.
const form = document.querySelector("#join");
const token = location.hash.slice(1);
const field = form.elements.token;

if (token) {
  field.value = token;
  field.closest(".field").hidden = true;
  form.addEventListener("submit", () => history.replaceState(null, "", "/join"));
} else {
  field.focus();
}
