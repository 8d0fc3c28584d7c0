package domain

import _ "embed"

// example is the document that shows everything, with the places that tests
// need.
//
//go:embed testdata/contract.yaml
var example string
