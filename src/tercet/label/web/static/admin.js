// Comfort for the administrators' pages, which work without it.
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

for (const button of document.querySelectorAll("[data-copy]")) {
  const field = document.getElementById(button.dataset.copy);
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    field.select();
    await navigator.clipboard.writeText(field.value);
    button.textContent = "Copied";
  });
}

// Text that was not saved is not left by accident.
for (const area of document.querySelectorAll("[data-guard]")) {
  const before = area.value;
  let sending = false;
  area.form.addEventListener("submit", () => (sending = true));
  addEventListener("beforeunload", (event) => {
    if (!sending && area.value !== before) event.preventDefault();
  });
}
