package domain

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyledger/keyledger/events"
)

// explained is the first step that failed, else VALID.
func explained(steps []Step) Code {
	for _, s := range steps {
		if s.Verdict == Failed {
			return s.Code
		}
	}
	return CodeValid
}

// Whatever is wrong with a request of a known key, the first step that fails is
// what the verifier decided; the steps are those of section 3, in its order.
func TestExplainAgreesWithJudge(t *testing.T) {
	known := slices.IndexFunc(faults, func(f struct {
		code  Code
		apply func(*scene)
	}) bool {
		return f.code == CodeRevoked
	})
	order := Codes()[:slices.Index(Codes(), CodeValid)]
	rapid.Check(t, func(rt *rapid.T) {
		s := newScene(t)
		for i, f := range faults {
			if (i >= known || f.code == CodeInsecureTransport) && rapid.IntRange(0, 5).Draw(rt, string(f.code)) == 0 {
				f.apply(s)
			}
		}
		want := s.judge()
		which, _ := s.key.SecretState(HashSecret(s.secret), events.At(noon))
		steps := s.k.Explain(&s.req, which, s.key, s.owner, events.At(noon))
		if got := explained(steps); got != want {
			rt.Fatalf("explained as %s, judged %s: %v", got, want, steps)
		}
		var codes []Code
		reached := true
		for _, step := range steps {
			codes = append(codes, step.Code)
			if reached == (step.Verdict == NotReached) || reached && step.Why == "" {
				rt.Fatalf("%v is reached: %v", step, reached)
			}
			reached = reached && step.Verdict != Failed
		}
		if !slices.Equal(codes, order) {
			rt.Fatalf("steps %v", codes)
		}
	})
}

// What the log does not hold is said to be missing, and is neither passed nor failed.
func TestExplainWithLittleKnown(t *testing.T) {
	s := newScene(t)
	s.key.Plan = "basic"
	s.key.Earlier = []Earlier{{Until: events.At(noon) - 1}}
	var missing []Code
	for _, step := range s.k.Explain(&Request{}, "", s.key, s.owner, events.At(noon)) {
		if step.Verdict == NotRecorded {
			missing = append(missing, step.Code)
		} else if step.Verdict != Passed {
			t.Errorf("%v", step)
		}
	}
	want := []Code{CodeInsecureTransport, CodeWrongContentType, CodeSuperseded, CodeWrongEnvironment, CodePlanDenied, CodeWrongOwner,
		CodeWrongResource, CodeInsufficientScope, CodeOriginDenied, CodeIPDenied, CodeRateLimited}
	if !slices.Equal(missing, want) {
		t.Errorf("not recorded: %v, want %v", missing, want)
	}
}

// Whoever could do something is who the verifier admits, and whoever could not is
// told the check that it refuses with.
func TestCouldAgreesWithJudge(t *testing.T) {
	known := slices.IndexFunc(faults, func(f struct {
		code  Code
		apply func(*scene)
	}) bool {
		return f.code == CodeRevoked
	})
	rapid.Check(t, func(rt *rapid.T) {
		s := newScene(t)
		for i, f := range faults {
			// A secret that was rotated away is not the key's any more.
			if i >= known && f.code != CodeSuperseded && rapid.IntRange(0, 5).Draw(rt, string(f.code)) == 0 {
				f.apply(s)
			}
		}
		want := s.judge()
		if got := s.k.Could(&s.req, s.key, s.owner, events.At(noon)); got != want {
			rt.Fatalf("it could be %s, judged %s", got, want)
		}
		why, conditions := s.k.WhyCould(&s.req, s.key, s.owner, events.At(noon))
		if why == "" || (want == CodeValid) != (conditions != nil) {
			rt.Fatalf("%s, because %q, if %v", want, why, conditions)
		}
	})
}

// What is not told of a request is a condition.
func TestCouldConditions(t *testing.T) {
	s := newScene(t)
	s.key.ExpiresAt = events.At(noon) + 1000
	_, all := s.k.WhyCould(&Request{Scopes: s.key.Scopes[:1]}, s.key, s.owner, events.At(noon))
	var codes []Code
	for _, c := range all {
		if codes = append(codes, c.Code); c.Says == "" {
			t.Errorf("%s says nothing", c.Code)
		}
	}
	want := []Code{CodeInsecureTransport, CodeWrongContentType, CodeExpired, CodeWrongEnvironment, CodeWrongOwner, CodeWrongResource, CodeOriginDenied, CodeIPDenied}
	if !slices.Equal(codes, want) {
		t.Errorf("conditions %v, want %v", all, want)
	}
}
