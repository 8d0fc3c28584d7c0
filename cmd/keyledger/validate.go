package main

import "go.yaml.in/yaml/v3"

// checkDocument lists what is wrong with a document.
func checkDocument(d document) []documentProblem {
	var v map[string]any
	if err := yaml.Unmarshal(d.body, &v); err != nil {
		return []documentProblem{{Message: err.Error()}}
	}
	return nil
}
