// Command keyledger is the whole program: the service, its parts, and the
// command line that talks to a running one.
//
// The command line promises what section 7 of the contract says: --json on
// every command that prints, tables on a terminal and plain lines elsewhere,
// secrets read from stdin or a file and never taken as an argument, and exit
// codes that a script can act on (see exit.go).
//
// It can disappoint in two ways that it says itself: a change whose answer was
// lost may have happened (repeat it with the idempotency key that the message
// names), and a list may be a moment older than the change before it (give
// --min-sequence).
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
