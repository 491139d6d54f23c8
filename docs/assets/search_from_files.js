// Browsers start no worker from a page that was opened as a file. The search then runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      addEventListener("message", (event) => {
        if (event.source === this.frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
      const page = this.frame.contentDocument
      page.open()
      page.write(`<script>postMessage = (data) => parent.postMessage(data, "*")</script><script src="${url}"></script>`)
      this.ready = new Promise((done) => this.frame.addEventListener("load", done, { once: true }))
      page.close()
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
