"use strict";

const MOST_OPTIONS = 200;

/*
 * A text field that finds an entry among many by typing: the combobox pattern of WAI-ARIA, a list that pops up.
 * entries: [{text, note}], in the order they are offered; chosen(place) is called with a place in it.
 */
class Picker {
  constructor(input, list, entries, chosen) {
    Object.assign(this, { input, list, entries, chosen, shown: [], active: -1, place: -1 });
    input.setAttribute("role", "combobox");
    input.setAttribute("aria-autocomplete", "list");
    input.setAttribute("aria-controls", list.id);
    input.autocomplete = "off";
    input.spellcheck = false;
    list.setAttribute("role", "listbox");
    this.close();
    input.addEventListener("focus", () => input.select());
    input.addEventListener("click", () => {
      input.select();
      this.open("");
    });
    input.addEventListener("input", () => this.open(input.value));
    input.addEventListener("keydown", (event) => this.key(event));
    input.addEventListener("blur", () => this.leave());
    list.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const option = event.target.closest("[role=option]");
      if (option !== null) {
        this.take(Number(option.dataset.place));
      }
    });
  }

  /* Show entry `place` as the chosen one, without telling anybody. */
  show(place) {
    this.place = place;
    this.input.value = place < 0 ? "" : this.entries[place].text;
  }

  take(place) {
    this.show(place);
    this.close();
    this.chosen(place);
  }

  leave() {
    this.close();
    this.show(this.place);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  /* Those that start as typed stand before those that only hold it. */
  matching(typed) {
    const sought = typed.trim().toLowerCase();
    const starting = [];
    const holding = [];
    for (let place = 0; place < this.entries.length; place++) {
      const at = this.entries[place].text.toLowerCase().indexOf(sought);
      if (at === 0) {
        starting.push(place);
      } else if (at > 0) {
        holding.push(place);
      }
    }
    return [...starting, ...holding].slice(0, MOST_OPTIONS);
  }

  open(typed) {
    this.shown = this.matching(typed);
    this.list.replaceChildren(...this.shown.map((place, row) => this.option(place, row)));
    if (this.shown.length === 0) {
      const none = document.createElement("li");
      none.textContent = "none of that name";
      none.className = "none";
      this.list.append(none);
    }
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.activate(typed === "" ? this.shown.indexOf(this.place) : this.shown.length > 0 ? 0 : -1);
  }

  option(place, row) {
    const option = document.createElement("li");
    option.id = `${this.list.id}-${row}`;
    option.setAttribute("role", "option");
    option.dataset.place = String(place);
    option.append(this.entries[place].text);
    if (this.entries[place].note) {
      const note = document.createElement("span");
      note.textContent = this.entries[place].note;
      option.append(" ", note);
    }
    return option;
  }

  activate(row) {
    this.active = row;
    for (const option of this.list.querySelectorAll("[role=option]")) {
      option.setAttribute("aria-selected", String(option.id === `${this.list.id}-${row}`));
    }
    const option = row < 0 ? null : document.getElementById(`${this.list.id}-${row}`);
    if (option === null) {
      this.input.removeAttribute("aria-activedescendant");
    } else {
      this.input.setAttribute("aria-activedescendant", option.id);
      option.scrollIntoView({ block: "nearest" });
    }
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (event.key in steps) {
      event.preventDefault();
      if (this.list.hidden) {
        this.open("");
      } else {
        this.activate(Math.min(this.shown.length - 1, Math.max(0, this.active + steps[event.key])));
      }
    } else if (event.key === "Enter" && !this.list.hidden && this.active >= 0) {
      event.preventDefault();
      this.take(this.shown[this.active]);
    } else if (event.key === "Escape" && !this.list.hidden) {
      event.preventDefault();
      this.leave();
    }
  }
}
