namespace ReformerNative.Oracle;

/// <summary>
/// Word table [V,E] and position tables: none; learned, one [max,E]; axial, [s_i,e_i] with the e_i summing to E. A
/// learned table is an axial one of a single axis.
/// </summary>
public sealed record EmbeddingTables(
    int Width,
    double[] Word,
    IReadOnlyList<double[]> Positions,
    IReadOnlyList<int> PositionWidths
);

/// <summary>e[b,t] = dropout(word[id]) + dropout(position[first + t]), for ids [B,T].</summary>
public static class Embedding
{
    public static double[] Forward(
        EmbeddingTables tables,
        int[] ids,
        int tokens,
        long firstPosition,
        float dropout,
        Randomness randomness,
        int? gridExponent = null
    )
    {
        var e = new double[ids.Length * tables.Width];
        ForEachEntry(
            tables,
            ids,
            tokens,
            firstPosition,
            dropout,
            randomness,
            (i, table, entry, multiplier) =>
                e[i] += multiplier * (table < 0 ? tables.Word : tables.Positions[table])[entry]
        );
        return gridExponent is { } exponent ? [.. e.Select(value => Grid.Round(value, exponent))] : e;
    }

    /// <summary>
    /// Gradients of the tables. The caller adds up the gradients of the two streams; rounding to the grid has
    /// derivative 1.
    /// </summary>
    public static EmbeddingTables Backward(
        EmbeddingTables tables,
        int[] ids,
        int tokens,
        long firstPosition,
        float dropout,
        Randomness randomness,
        double[] gradE
    )
    {
        var gradients = tables with
        {
            Word = new double[tables.Word.Length],
            Positions = [.. tables.Positions.Select(p => new double[p.Length])],
        };
        ForEachEntry(
            tables,
            ids,
            tokens,
            firstPosition,
            dropout,
            randomness,
            (i, table, entry, multiplier) =>
                (table < 0 ? gradients.Word : gradients.Positions[table])[entry] += multiplier * gradE[i]
        );
        return gradients;
    }

    /// <summary>
    /// Calls (flat index of e, position table or -1 for words, index in that table, dropout multiplier) for every
    /// summand of every value.
    /// </summary>
    private static void ForEachEntry(
        EmbeddingTables tables, int[] ids, int tokens, long firstPosition, float dropout, Randomness randomness,
        Action<int, int, long, double> action)
    {
        for (var i = 0; i < ids.Length * tables.Width; i++)
        {
            var (row, d) = (i / tables.Width, i % tables.Width);
            action(
                i,
                -1,
                (long)ids[row] * tables.Width + d,
                Philox.DropoutMultiplier(randomness, Site.WordEmbedding, i, dropout)
            );
            for (var table = 0; table < tables.Positions.Count; table++)
            {
                var width = tables.PositionWidths[table];
                if (d < width)
                {
                    // Row-major: the last axis runs fastest.
                    var laterAxes = Enumerable.Range(table + 1, tables.Positions.Count - table - 1);
                    var later = laterAxes.Aggregate(1L, (product, axis) => product * Rows(tables, axis));
                    var coordinate = (firstPosition + row % tokens) / later % Rows(tables, table);
                    action(
                        i,
                        table,
                        coordinate * width + d,
                        Philox.DropoutMultiplier(randomness, Site.PositionEmbedding, i, dropout)
                    );
                    break;
                }

                d -= width;
            }
        }
    }

    private static int Rows(EmbeddingTables tables, int table) =>
        tables.Positions[table].Length / tables.PositionWidths[table];
}

/// <summary>The exact residual's grid: multiples of 2^exponent.</summary>
public static class Grid
{
    /// <summary>The nearest multiple of 2^exponent, of two equally near ones the even one.</summary>
    public static double Round(double value, int exponent) =>
        Math.ScaleB(Math.Round(Math.ScaleB(value, -exponent), MidpointRounding.ToEven), exponent);
}
