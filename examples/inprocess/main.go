// An API that verifies keys in process: it follows them from NATS, decides in
// memory and records what was used, and never calls keyledger over HTTP.
//
//	NATS_URL=nats://127.0.0.1:7072 MASTER_KEY_FILE=…/master.key go run ./examples/inprocess
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/keyledger/keyledger/verify"
	"github.com/keyledger/keyledger/verify/middleware"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) (err error) {
	node, err := verify.Connect(ctx, verify.Config{
		URL:           os.Getenv("NATS_URL"),
		MasterKeyFile: os.Getenv("MASTER_KEY_FILE"),
	})
	if err != nil {
		return err
	}
	defer func() { // after the last request: what was used is recorded
		end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = errors.Join(err, node.Close(end))
	}()
	guard, err := middleware.New(node.Verifier, middleware.Options{Keyspace: "parcelbird"})
	if err != nil {
		return err
	}

	router := chi.NewRouter()
	router.Get("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := node.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	router.Group(func(r chi.Router) {
		r.Use(guard)
		r.Get("/v1/parcels/{parcel}", func(w http.ResponseWriter, r *http.Request) {
			middleware.SetCost(r.Context(), 250) // micros
			fmt.Fprintf(w, "parcel %s, for %s\n", chi.URLParam(r, "parcel"), middleware.KeyOf(r.Context()).Owner)
		})
	})

	server := &http.Server{Addr: os.Getenv("LISTEN"), Handler: router, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	log.Printf("serving with the keys as of LEDGER %d", node.Ring.Sequence())
	select {
	case err := <-ended:
		return err
	case <-node.Done(): // the ledger is damaged
		return node.Ready()
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(end)
}
