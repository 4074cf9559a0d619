// Scrolls the page down and up for some seconds. Returns the times between its frames and the durations of the page's own
// work in long ones, all in milliseconds, and how far it can scroll. An expression that a test evaluates in the page.
async (seconds) => {
  const frames = [], work = [];
  const observer = new PerformanceObserver((list) => {
    for (const { scripts } of list.getEntries()) work.push(Math.round(scripts.reduce((sum, one) => sum + one.duration, 0)));
  });
  observer.observe({ type: "long-animation-frame" });
  const pixels = document.documentElement.scrollHeight - innerHeight;
  const began = performance.now();
  let last = null, at = 0, step = 40;
  await new Promise((done) => {
    const next = (now) => {
      if (last !== null) frames.push(now - last);
      last = now;
      if (at + step > pixels || at + step < 0) step = -step;
      at += step;
      scrollTo(0, at);
      if (now - began < seconds * 1000) requestAnimationFrame(next);
      else done();
    };
    requestAnimationFrame(next);
  });
  observer.disconnect();
  return { frames, work, pixels };
}
