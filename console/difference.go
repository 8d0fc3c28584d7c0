package console

import "strings"

// diffLine is one line of a difference between two texts.
type diffLine struct {
	Kind string // same, removed, added; gap: lines that are the same were left out
	Text string
	Old  int // its number in the one text, from 1; 0: it is not there
	New  int
}

type diff struct {
	Lines          []diffLine
	Removed, Added int
}

// diffAround is how many equal lines are shown before and after a difference.
const diffAround = 3

// diffMost bounds the work of a comparison, in pairs of lines. What is larger is shown
// as removed and added whole.
const diffMost = 4 << 20

// difference compares two texts line by line, by the longest common subsequence.
func difference(before, after string) diff {
	a, b := splitLines(before), splitLines(after)
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		start++
	}
	end := 0
	for end < len(a)-start && end < len(b)-start && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	var all []diffLine
	same := func(i, j int) { all = append(all, diffLine{"same", a[i], i + 1, j + 1}) }
	for i := range start {
		same(i, i)
	}
	midA, midB := a[start:len(a)-end], b[start:len(b)-end]
	i, j := 0, 0
	if len(midA)*len(midB) <= diffMost {
		// length[i][j] is that of the longest common subsequence of midA[i:] and midB[j:].
		length := make([][]int32, len(midA)+1)
		for i := range length {
			length[i] = make([]int32, len(midB)+1)
		}
		for i := len(midA) - 1; i >= 0; i-- {
			for j := len(midB) - 1; j >= 0; j-- {
				if midA[i] == midB[j] {
					length[i][j] = length[i+1][j+1] + 1
				} else {
					length[i][j] = max(length[i+1][j], length[i][j+1])
				}
			}
		}
		for i < len(midA) && j < len(midB) {
			switch {
			case midA[i] == midB[j]:
				same(start+i, start+j)
				i, j = i+1, j+1
			case length[i+1][j] >= length[i][j+1]:
				all = append(all, diffLine{"removed", midA[i], start + i + 1, 0})
				i++
			default:
				all = append(all, diffLine{"added", midB[j], 0, start + j + 1})
				j++
			}
		}
	}
	for ; i < len(midA); i++ {
		all = append(all, diffLine{"removed", midA[i], start + i + 1, 0})
	}
	for ; j < len(midB); j++ {
		all = append(all, diffLine{"added", midB[j], 0, start + j + 1})
	}
	for i := end; i > 0; i-- {
		same(len(a)-i, len(b)-i)
	}
	return near(all)
}

func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

// near keeps what differs, and what stands around it.
func near(all []diffLine) (d diff) {
	keep := make([]bool, len(all))
	for i, l := range all {
		switch l.Kind {
		case "same":
			continue
		case "removed":
			d.Removed++
		case "added":
			d.Added++
		}
		for k := max(0, i-diffAround); k <= min(len(all)-1, i+diffAround); k++ {
			keep[k] = true
		}
	}
	for i, l := range all {
		if keep[i] {
			d.Lines = append(d.Lines, l)
		} else if i == 0 || keep[i-1] {
			d.Lines = append(d.Lines, diffLine{Kind: "gap"})
		}
	}
	if d.Removed+d.Added == 0 {
		d.Lines = nil
	}
	return d
}
