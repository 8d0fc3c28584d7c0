package testenv

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// FreePort answers a TCP port of 127.0.0.1 that is free, for a program that cannot
// choose one itself, or that comes back to it: of those that the kernel gives to nobody
// who does not ask, since the source of somebody's connection could be there while the
// program is away. It is this test's until the test ends: nobody else who asks here gets
// it, in any process.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 12000 + rand.IntN(18000)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		reserved, err := net.ListenPacket("udp", address) // nothing here speaks UDP
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			reserved.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { reserved.Close() })
		return port
	}
	t.Fatal("no port of 127.0.0.1 is free")
	return 0
}

// FreeAddress is 127.0.0.1 with a [FreePort].
func FreeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}
