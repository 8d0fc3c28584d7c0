package events

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// Moments are written as package time writes them, in every year.
func TestTimeText(t *testing.T) {
	moments := []time.Time{
		time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(0, 12, 31, 0, 0, 0, 0, time.UTC), time.Date(-5, 3, 1, 0, 0, 0, 0, time.UTC),
		time.Date(1969, 12, 31, 23, 59, 59, 999e6, time.UTC), time.Date(1970, 1, 1, 0, 0, 0, 1e6, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	for year := 1890; year < 2410; year++ {
		moments = append(moments,
			time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(year, 2, 28, 23, 59, 59, 999e6, time.UTC),
			time.Date(year, 2, 29, 12, 30, 1, 10e6, time.UTC), time.Date(year, 3, 1, 0, 0, 0, 0, time.UTC), time.Date(year, 12, 31, 23, 0, 0, 0, time.UTC),
		)
	}
	for range 20_000 {
		moments = append(moments, time.UnixMilli(rand.Int64N(400_000_000_000_000)-100_000_000_000_000).UTC())
	}
	for _, m := range moments {
		at := At(m)
		if at == 0 {
			continue
		}
		want := m.Format(timeFormat)
		if got := at.String(); got != want {
			t.Fatalf("%s is written as %s", want, got)
		}
		if got := string(at.AppendJSON(nil)); got != `"`+want+`"` {
			t.Fatalf("%s is written as %s", want, got)
		}
	}
	if got := string(Time(0).AppendJSON(nil)); got != "null" {
		t.Errorf("no moment is written as %s", got)
	}
}

// Ids are written as uuids are and read back; what is not one is not read.
func TestIDText(t *testing.T) {
	for range 1000 {
		var u [16]byte
		for i := range u {
			u[i] = byte(rand.Uint32())
		}
		id := FormatID("key", u)
		u[6], u[8] = u[6]&0x0f|0x70, u[8]&0x3f|0x80
		if want := fmt.Sprintf("key_%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:]); id != want {
			t.Fatalf("%s is written as %s", want, id)
		}
		if got, err := ParseID("key", id); err != nil || got != u {
			t.Fatalf("%s is read as %x, %v", id, got, err)
		}
		at := rand.IntN(len(id))
		for _, bad := range []string{id[:at], id[:at] + "\x00" + id[at+1:], id[:at] + "G" + id[at+1:], id[:at] + "\xff" + id[at+1:], id + "0", "x" + id} {
			if _, err := ParseID("key", bad); err == nil {
				t.Fatalf("%q is read", bad)
			}
		}
	}
	if _, err := ParseID("key", strings.ToUpper(FormatID("key", [16]byte{0xab}))); err == nil || !strings.Contains(err.Error(), "lower-case") {
		t.Errorf("an id in capitals: %v", err)
	}
}

func BenchmarkText(b *testing.B) {
	now, u := At(time.Now()), [16]byte{1, 2, 3}
	id := FormatID("key", u)
	buffer := make([]byte, 0, 64)
	b.Run("time", func(b *testing.B) {
		for b.Loop() {
			buffer = now.AppendJSON(buffer[:0])
		}
	})
	b.Run("format", func(b *testing.B) {
		for b.Loop() {
			buffer = AppendID(buffer[:0], "key", u)
		}
	})
	b.Run("parse", func(b *testing.B) {
		for b.Loop() {
			if _, err := ParseID("key", id); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Eight characters at a time are judged as one at a time are, whatever stands
// beside them.
func TestAllPlain(t *testing.T) {
	for _, beside := range []byte{' ', '!', 'a', '~', 0x80, 0xff, 0, '"'} {
		for n := range 20 {
			s := bytes.Repeat([]byte{beside}, n)
			for at := range s {
				for c := range 256 {
					s[at] = byte(c)
					want := true
					for _, c := range s {
						want = want && plain[c]
					}
					if allPlain(string(s)) != want {
						t.Fatalf("%q", s)
					}
				}
				s[at] = beside
			}
		}
	}
}
