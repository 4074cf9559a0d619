// Choices that outlive the page. A browser may forbid storage; then they last until the page is closed.

export function recall(name) {
  try {
    return localStorage.getItem(`inference-proxy.${name}`);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`inference-proxy.${name}`, value);
  } catch {
    // forbidden or full: nothing depends on it
  }
}

// Secrets: until the tab is closed, and never for other tabs.
export function recallSecret(name) {
  try {
    return sessionStorage.getItem(`inference-proxy.${name}`);
  } catch {
    return null;
  }
}

export function rememberSecret(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(`inference-proxy.${name}`);
    else sessionStorage.setItem(`inference-proxy.${name}`, value);
  } catch {
    // the key must be entered again after a reload
  }
}
