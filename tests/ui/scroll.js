// Scrolls the page down and up for some seconds and returns the times between its frames, in milliseconds, and the
// times of the page's own work in long frames. Evaluated in the page.
(async (seconds) => {
  const frames = [], work = [];
  const observer = new PerformanceObserver((list) => {
    for (const { startTime, duration, renderStart, styleAndLayoutStart, scripts } of list.getEntries()) {
      const script = scripts.reduce((sum, one) => sum + one.duration, 0);
      work.push({ duration, script, before: renderStart - startTime, layout: startTime + duration - styleAndLayoutStart });
    }
  });
  observer.observe({ type: "long-animation-frame", buffered: false });
  const bottom = document.documentElement.scrollHeight - innerHeight;
  const began = performance.now();
  let last = null, at = 0, step = 40;
  await new Promise((done) => {
    const next = (now) => {
      if (last !== null) frames.push(now - last);
      last = now;
      if (at + step > bottom || at + step < 0) step = -step;
      at += step;
      scrollTo(0, at);
      if (now - began < seconds * 1000) requestAnimationFrame(next);
      else done();
    };
    requestAnimationFrame(next);
  });
  observer.disconnect();
  return { frames, work, bottom };
})
