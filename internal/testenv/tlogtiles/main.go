// Tlogtiles reads a published log with the client of Tessera, which knows nothing of
// keyledger: the checkpoint with the signatures of the log and of a witness, every
// entry, and an inclusion proof for each. It prints how many there were. It is a module
// of its own, so that nothing of it is a dependency of the program.
//
//	tlogtiles DIRECTORY ORIGIN KEY
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	log.SetFlags(0)
	n, err := read(context.Background(), os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n)
}

func read(ctx context.Context, dir, origin, key string) (n uint64, err error) {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return 0, err
	}
	files := client.FileFetcher{Root: dir}
	checkpoint, _, _, err := client.FetchCheckpoint(ctx, files.ReadCheckpoint, verifier, origin)
	if err != nil {
		return 0, err
	}
	proofs, err := client.NewProofBuilder(ctx, checkpoint.Size, files.ReadTile)
	if err != nil {
		return 0, err
	}
	for number := uint64(0); n < checkpoint.Size; number++ {
		bundle, err := client.GetEntryBundle(ctx, files.ReadEntryBundle, number, checkpoint.Size)
		if err != nil {
			return n, err
		}
		for _, entry := range bundle.Entries {
			path, err := proofs.InclusionProof(ctx, n)
			if err != nil {
				return n, err
			}
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, n, checkpoint.Size, rfc6962.DefaultHasher.HashLeaf(entry), path, checkpoint.Hash); err != nil {
				return n, fmt.Errorf("entry %d: %w", n, err)
			}
			n++
		}
	}
	return n, nil
}
