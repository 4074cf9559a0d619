// Work on many rows in slices, between which the browser can scroll and paint.

const SLICE_MS = 6;

export class Slices {
  // Do work(item) for each item, soon; what is left of earlier work is dropped, because this is newer.
  run(items, work) {
    clearTimeout(this.timer);
    this.items = items;
    this.work = work;
    this.at = 0;
    this.next();
  }

  next() {
    const end = performance.now() + SLICE_MS;
    while (this.at < this.items.length && performance.now() < end) this.work(this.items[this.at++]);
    if (this.at < this.items.length) this.timer = setTimeout(() => this.next());
  }
}
