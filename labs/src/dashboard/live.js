// Follows the run under way. Text only goes in as text.
const bar = document.querySelector("#live-bar");
const line = document.querySelector("#live-text");
const box = document.querySelector("#live");
const events = new EventSource("/api/live");
events.addEventListener("progress", (event) => {
  const now = JSON.parse(event.data);
  const share = now.total > 0 ? Math.min(1, now.done / now.total) : 0;
  box.dataset.state = "running";
  bar.value = share;
  line.textContent = `${now.run_id} · ${now.lab} · ${now.done} of ${now.total}`;
});
events.addEventListener("idle", () => {
  if (box.dataset.state === "running") location.reload();
  box.dataset.state = "idle";
  bar.value = 0;
  line.textContent = "no run under way";
});
events.onerror = () => {
  box.dataset.state = "lost";
  line.textContent = "connection lost, trying again";
};
