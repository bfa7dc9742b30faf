// Search and filter of the wrong answers. Without it all of them stand on the page.
const form = document.querySelector(".browse");
if (form) {
  const entries = [...document.querySelectorAll(".wrong > details")];
  const texts = entries.map((entry) => entry.textContent.toLowerCase());
  const show = () => {
    const wanted = form.elements.text.value.trim().toLowerCase();
    const benchmark = form.elements.benchmark.value;
    let shown = 0;
    entries.forEach((entry, at) => {
      const fits = (!benchmark || entry.dataset.benchmark === benchmark) && texts[at].includes(wanted);
      entry.hidden = !fits;
      shown += fits;
    });
    form.querySelector("output").textContent = `${shown} of ${entries.length}`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
}
