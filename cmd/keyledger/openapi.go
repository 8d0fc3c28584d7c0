package main

import (
	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/api"
)

func (a *app) openapiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "openapi", Short: "Print the OpenAPI 3.1 document of the API", Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			b, err := api.OpenAPI()
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(append(b, '\n'))
			return err
		},
	}
}
