// Prints what AsyncAPI's parser finds in a document, and fails where it is an error.
const { Parser, fromFile } = require('@asyncapi/parser')

fromFile(new Parser(), process.argv[2]).parse().then(({ document, diagnostics }) => {
  for (const d of diagnostics) console.log(['error', 'warning', 'info', 'hint'][d.severity], d.path.join('.'), d.message)
  if (!document || diagnostics.some((d) => d.severity < 2)) process.exit(1)
})
