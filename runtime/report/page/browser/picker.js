"use strict";

const MAX_OPTIONS = 200;

/*
 * A text field with a filtered list, after the combobox pattern of WAI-ARIA.
 * entries: [{text, note, dim}], in the order of the list; dim: gray. onSelect: called with the index of the selected entry.
 */
class Picker {
  constructor(input, list, entries, onSelect) {
    Object.assign(this, { input, list, entries, onSelect, matches: [], active: -1, selected: -1 });
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
    input.addEventListener("keydown", (event) => this.handleKey(event));
    input.addEventListener("blur", () => this.cancel());
    list.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const option = event.target.closest("[role=option]");
      if (option !== null) {
        this.select(Number(option.dataset.index));
      }
    });
  }

  /* Show an entry as selected without calling onSelect. */
  show(index) {
    this.selected = index;
    this.input.value = index < 0 ? "" : this.entries[index].text;
  }

  select(index) {
    this.show(index);
    this.close();
    this.onSelect(index);
  }

  cancel() {
    this.close();
    this.show(this.selected);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  /* Entries that start with the typed text, then those that contain it. */
  findMatches(typed) {
    const query = typed.trim().toLowerCase();
    const starting = [];
    const containing = [];
    for (let index = 0; index < this.entries.length; index++) {
      const at = this.entries[index].text.toLowerCase().indexOf(query);
      if (at === 0) {
        starting.push(index);
      } else if (at > 0) {
        containing.push(index);
      }
    }
    return [...starting, ...containing].slice(0, MAX_OPTIONS);
  }

  open(typed) {
    this.matches = this.findMatches(typed);
    this.list.replaceChildren(...this.matches.map((index, row) => this.createOption(index, row)));
    if (this.matches.length === 0) {
      const none = document.createElement("li");
      none.textContent = "no match";
      none.className = "none";
      this.list.append(none);
    }
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.activate(typed === "" ? this.matches.indexOf(this.selected) : this.matches.length > 0 ? 0 : -1);
  }

  createOption(index, row) {
    const option = document.createElement("li");
    option.id = `${this.list.id}-${row}`;
    option.setAttribute("role", "option");
    option.dataset.index = String(index);
    option.append(this.entries[index].text);
    option.classList.toggle("dim", this.entries[index].dim === true);
    if (this.entries[index].note) {
      const note = document.createElement("span");
      note.textContent = this.entries[index].note;
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

  handleKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (event.key in steps) {
      event.preventDefault();
      if (this.list.hidden) {
        this.open("");
      } else {
        this.activate(Math.min(this.matches.length - 1, Math.max(0, this.active + steps[event.key])));
      }
    } else if (event.key === "Enter" && !this.list.hidden && this.active >= 0) {
      event.preventDefault();
      this.select(this.matches[this.active]);
    } else if (event.key === "Escape" && !this.list.hidden) {
      event.preventDefault();
      this.cancel();
    }
  }
}
