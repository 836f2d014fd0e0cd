// Menu, theme, copy buttons, search, and the heading that is in view
const root = document.body.dataset.root
const $ = (s, o = document) => o.querySelector(s)
const $$ = (s, o = document) => [...o.querySelectorAll(s)]

$('.menu').onclick = e => {
  const open = document.body.classList.toggle('menu-open')
  e.currentTarget.setAttribute('aria-expanded', open)
}
$('.theme').onclick = () => {
  const html = document.documentElement
  html.dataset.theme = html.dataset.theme === 'dark' ? 'light' : 'dark'
  localStorage.setItem('theme', html.dataset.theme)
}
$('.sidebar [aria-current]')?.scrollIntoView({ block: 'nearest' })

for (const h of $$('main :is(h2,h3,h4)[id]')) {
  const a = document.createElement('a')
  a.href = '#' + h.id
  a.className = 'anchor'
  a.textContent = '#'
  a.setAttribute('aria-label', 'Link to ' + h.textContent)
  h.append(a)
}
for (const table of $$('main table')) {
  const box = document.createElement('div')
  box.className = 'wide'
  box.tabIndex = 0
  table.replaceWith(box)
  box.append(table)
}
for (const pre of $$('main pre')) pre.tabIndex = 0
for (const pre of $$('main pre:not(.output)')) {
  const b = document.createElement('button')
  b.className = 'copy'
  b.textContent = 'Copy'
  b.onclick = async () => {
    await navigator.clipboard.writeText($('code', pre)?.textContent ?? pre.textContent)
    b.textContent = 'Copied'
    setTimeout(() => b.textContent = 'Copy', 1500)
  }
  const box = pre.closest('div.sourceCode') ?? pre
  box.classList.add('copyable')
  box.append(b)
}

const links = new Map($$('.toc nav a').map(a => [a.getAttribute('href').slice(1), a]))
const seen = new IntersectionObserver(entries => {
  const now = entries.find(o => o.isIntersecting)
  if (!now || !links.has(now.target.id)) return
  for (const a of links.values()) a.classList.remove('now')
  links.get(now.target.id).classList.add('now')
}, { rootMargin: '-64px 0px -70% 0px' })
for (const id of links.keys()) seen.observe(document.getElementById(id))

const dialog = $('dialog.search')
// A question is asked by its other words: "what is sft" finds what "sft" finds
const asking = new Set('a an and are can do does for how i in is it my of on or should the to what when which why with'.split(' '))
const terms = s => s.split(/\s+/).filter(o => !asking.has(o.toLowerCase().replace(/\W+$/, ''))).join(' ').replace(/[?？]+$/, '') || s
if (dialog) {
  const input = $('input', dialog), list = $('ol', dialog), status = $('.status', dialog)
  let pagefind
  const load = () => pagefind ??= import(new URL(root + '/pagefind/pagefind.js', location.href)).then(async o => {
    await o.options({ ranking: { metaWeights: { title: 5, words: 60 } } }) // words: what people call the subject of a page
    return o
  })
  const open = () => {
    dialog.showModal()
    input.select()
    load()
  }
  const item = (url, title, excerpt) => {
    const li = document.createElement('li'), a = document.createElement('a'), p = document.createElement('p')
    a.href = url
    a.textContent = title
    p.innerHTML = excerpt
    li.append(a, p)
    return li
  }
  const show = async () => {
    const asked = input.value.trim()
    list.replaceChildren()
    status.textContent = ''
    if (!asked) return
    const found = await (await load()).debouncedSearch(terms(asked), {}, 150)
    if (!found || asked !== input.value.trim()) return
    const pages = await Promise.all(found.results.slice(0, 8).map(o => o.data()))
    if (asked !== input.value.trim()) return
    status.textContent = `${found.results.length} page${found.results.length === 1 ? '' : 's'}`
    const exact = s => s.title.replace('#', '').split('.').pop().trim().toLowerCase() === asked.toLowerCase() ? 0 : 1
    const hits = pages.flatMap(o => (o.sub_results.length ? o.sub_results : [o]).slice(0, 3).concat(o.sub_results.slice(3).filter(s => !exact(s)))
      .map(s => ({ url: s.url, title: (s.title ?? o.meta.title).replace(/#$/, ''), page: o.meta.title, excerpt: s.excerpt })))
    hits.sort((a, b) => exact(a) - exact(b))
    list.replaceChildren(...hits.map(h => item(h.url, h.title === h.page ? h.title : `${h.title} · ${h.page}`, h.excerpt)))
  }
  $('.search-open').onclick = open
  input.oninput = show
  dialog.onclick = e => { if (e.target === dialog || e.target.closest('a')) dialog.close() }
  addEventListener('keydown', e => {
    if (e.key === '/' && !e.target.closest('input,textarea') && !dialog.open) { e.preventDefault(); open() }
  })
}
