// Where the page's data come from: a server that is asked again and again, or the document itself.

const EVERY_MS = 1500;
const LONGEST_WAIT_MS = 15000;

export async function ask(path, headers = {}) {
  const reply = await fetch(path, { headers, cache: "no-store" });
  if (reply.status === 304) return { reply, content: null };
  const content = await reply.json();
  if (!reply.ok) throw new Error(content.detail ?? `status ${reply.status}`);
  return { reply, content };
}

// Asks until `stop` is called; after a failure with growing pauses, and not while nobody looks.
export function poll(step, failed) {
  let timer = null;
  let stopped = false;
  let failures = 0;
  const round = async () => {
    timer = null;
    try {
      if (!document.hidden || failures < 0) await step();
      failures = 0;
    } catch (error) {
      failures += 1;
      if (!stopped) failed(error);
    }
    if (!stopped) timer = setTimeout(round, Math.min(EVERY_MS * 2 ** failures, LONGEST_WAIT_MS));
  };
  const wake = () => {
    if (document.hidden || timer === null) return;
    clearTimeout(timer);
    round();
  };
  document.addEventListener("visibilitychange", wake);
  round();
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", wake);
  };
}

// Calls `changed` with study and attempts, at once and whenever the journal has grown, and with findings when they are
// known; with null where nothing is new. `follow` returns how to stop.
export class LiveStudy {
  constructor(id) {
    this.path = `api/v1/studies/${encodeURIComponent(id)}`;
    this.attempts = new Map();
    this.isLive = true;
    this.markdown = null;
  }

  follow(changed, failed) {
    let cursor = null;
    let tag = null;
    let numEnded = -1;
    const step = async () => {
      const query = cursor === null ? "" : `?after=${cursor}`;
      const { reply, content } = await ask(this.path + query, tag === null ? {} : { "If-None-Match": tag });
      if (content === null) return changed(null);
      if (content.is_whole) this.attempts = new Map();
      for (const each of content.attempts) this.attempts.set(each.number, each);
      changed({ study: content.study, attempts: this.attempts });
      const ended = [...this.attempts.values()].filter((each) => each.ended_at !== null && each.state !== "running").length;
      if (ended !== numEnded || content.is_whole) {
        changed({ findings: (await ask(`${this.path}/findings`)).content });
        numEnded = ended;
      }
      [cursor, tag] = [content.cursor, reply.headers.get("ETag")];
    };
    return poll(step, failed);
  }

  async files(number) {
    return (await ask(`${this.path}/attempts/${number}`)).content;
  }
}

export class FrozenStudy {
  constructor(data) {
    this.data = data;
    this.isLive = false;
    this.markdown = data.markdown;
  }

  follow(changed) {
    const attempts = new Map(this.data.attempts.map((each) => [each.number, each]));
    changed({ study: this.data.study, attempts, findings: this.data.findings });
    return () => {};
  }

  async files(number) {
    return this.data.files[number];
  }
}
